# Bodies of the HTTP API, and the replies to whatever of them is understood: 10^5 runs.
if(TARGET glmd_openai)
  glmd_fuzzer(fuzz_openai SOURCES fuzz_openai.c ROOMS base model plan proto coordinator
    LIBS glmd_openai)
  if(NOT GLMD_FUZZ)
    set_tests_properties(fuzz_openai PROPERTIES ENVIRONMENT GLMD_FUZZ_MUTATIONS=4000)
  endif()
endif()
