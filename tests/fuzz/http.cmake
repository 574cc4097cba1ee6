# What clients send over HTTP, through a socket. Bodies of the API itself: openai.cmake.
if(TARGET glmd_http)
  glmd_fuzzer(fuzz_http RUNS 100000
    SOURCES fuzz_http.c
    ROOMS base coordinator
    LIBS glmd_http)
endif()
