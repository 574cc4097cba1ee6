# The configuration reader takes files of any content.
if(TARGET glmd_conf)
  glmd_fuzzer(fuzz_config
    SOURCES "${CMAKE_CURRENT_SOURCE_DIR}/fuzz_config.c"
    ROOMS base
    LIBS glmd_conf)
endif()

# Requests of the Open Inference Protocol, from bytes to what admission gets.
if(TARGET glmd_wire)
  set(coordinator_room "${CMAKE_SOURCE_DIR}/coordinator")
  glmd_fuzzer(fuzz_kserve RUNS 100000
    SOURCES fuzz_kserve.c "${coordinator_room}/kserve.c" "${coordinator_room}/kserve_answer.c"
      "${CMAKE_SOURCE_DIR}/model/text_join.c"
    ROOMS base model plan proto coordinator
    LIBS glmd_wire glmd_base jansson m)
endif()

# Files of API keys.
glmd_fuzzer(fuzz_keys RUNS 100000
  SOURCES fuzz_keys.c "${CMAKE_SOURCE_DIR}/coordinator/auth_file.c"
  ROOMS base coordinator
  LIBS glmd_base)
