# What health and reflection read from the wire.
if(NOT GLMD_ENGINE_ONLY)
  glmd_fuzzer(fuzz_rpc_reflection RUNS 100000 SOURCES fuzz_rpc_reflection.c ROOMS base proto LIBS glmd_rpc)
  glmd_fuzzer(fuzz_status_details RUNS 100000 SOURCES fuzz_status_details.c ROOMS base proto LIBS glmd_wire glmd_base)
  glmd_fuzzer(fuzz_rpc_health RUNS 100000 SOURCES fuzz_rpc_health.c ROOMS base proto LIBS glmd_rpc)
endif()
