# What health and reflection read from the wire.
if(NOT GLMD_ENGINE_ONLY)
  glmd_fuzzer(fuzz_rpc_reflection SOURCES fuzz_rpc_reflection.c ROOMS base proto LIBS glmd_rpc)
  glmd_fuzzer(fuzz_rpc_health SOURCES fuzz_rpc_health.c ROOMS base proto LIBS glmd_rpc)
endif()
