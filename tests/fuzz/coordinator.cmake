# The configuration reader takes files of any content.
if(TARGET glmd_conf)
  glmd_fuzzer(fuzz_config
    SOURCES "${CMAKE_CURRENT_SOURCE_DIR}/fuzz_config.c"
    ROOMS base
    LIBS glmd_conf)
endif()
