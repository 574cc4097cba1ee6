find_package(PkgConfig REQUIRED)
pkg_check_modules(CMOCKA REQUIRED IMPORTED_TARGET cmocka)

set(GLMD_TEST_TIMEOUT 600)
if(CMAKE_CROSSCOMPILING)
  set(GLMD_TEST_TIMEOUT 3600) # emulated
endif()

# glmd_unit_test(NAME SOURCES ... ROOMS ... LIBS ... [LONG] [ARGS ...]): a cmocka program in
# build/<preset>/tests, run by ctest with the repository root as GLMD_SOURCE_DIR. LONG tests run only
# with `tests/run --long` (ctest label "long").
function(glmd_unit_test name)
  cmake_parse_arguments(A "LONG" "" "SOURCES;ROOMS;LIBS;ARGS" ${ARGN})
  add_executable(${name} ${A_SOURCES})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/tests")
  glmd_rooms(${name} ${A_ROOMS} tests)
  target_link_libraries(${name} PRIVATE glmd_flags PkgConfig::CMOCKA ${A_LIBS})
  add_test(NAME ${name} COMMAND ${name} ${A_ARGS})
  set_tests_properties(${name} PROPERTIES
    ENVIRONMENT "GLMD_SOURCE_DIR=${CMAKE_SOURCE_DIR};GLMD_BIN_DIR=${CMAKE_BINARY_DIR}/bin"
    TIMEOUT ${GLMD_TEST_TIMEOUT}
    SKIP_RETURN_CODE 77)
  if(A_LONG)
    set_tests_properties(${name} PROPERTIES LABELS long TIMEOUT 3600)
  endif()
endfunction()

# glmd_fuzzer(NAME SOURCES ... ROOMS ... LIBS ...): a fuzz target with LLVMFuzzerTestOneInput.
# With GLMD_FUZZ it is a libFuzzer program; otherwise it links a small driver that replays the seed
# corpus tests/fuzz/corpus/<name>/ plus deterministic mutations of it, RUNS in all (default: 400 of each
# file), as an ordinary test.
function(glmd_fuzzer name)
  cmake_parse_arguments(A "" "RUNS" "SOURCES;ROOMS;LIBS" ${ARGN})
  set(driver "")
  if(NOT GLMD_FUZZ)
    set(driver "${CMAKE_SOURCE_DIR}/tests/fuzz/replay.c")
  endif()
  add_executable(${name} ${A_SOURCES} ${driver})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/tests")
  glmd_rooms(${name} ${A_ROOMS} tests)
  target_link_libraries(${name} PRIVATE glmd_flags ${A_LIBS})
  if(GLMD_FUZZ)
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  else()
    add_test(NAME ${name} COMMAND ${name} "${CMAKE_SOURCE_DIR}/tests/fuzz/corpus/${name}")
    set_tests_properties(${name} PROPERTIES TIMEOUT ${GLMD_TEST_TIMEOUT} LABELS fuzz)
    file(GLOB seeds CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/tests/fuzz/corpus/${name}/*")
    list(LENGTH seeds n_seeds)
    if(A_RUNS AND n_seeds)
      math(EXPR n_mutations "${A_RUNS} / ${n_seeds} + 1")
      set_tests_properties(${name} PROPERTIES ENVIRONMENT GLMD_FUZZ_MUTATIONS=${n_mutations})
    endif()
  endif()
endfunction()

# glmd_emulated_test(NAME SOURCES ... ROOMS ... LIBS ...): a C++ cmocka program that runs kernel
# sources (kernels/cuda, .cu and .cuh) on the emulated GPU, once per emulated architecture
# (NAME_750: no asynchronous copies, k8 products; NAME_800; NAME_900: warpgroups). LIBS may hold "@ARCH@".
set(GLMD_EMULATED_ARCHS 750 800 900)
file(GLOB GLMD_EMU_SOURCES CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/kernels/cuda/emu*.cc")
function(glmd_emulated_test name)
  cmake_parse_arguments(A "LONG" "" "SOURCES;ROOMS;LIBS" ${ARGN})
  foreach(arch ${GLMD_EMULATED_ARCHS})
    if(NOT TARGET glmd_emu_${arch})
      add_library(glmd_emu_${arch} STATIC ${GLMD_EMU_SOURCES})
      glmd_rooms(glmd_emu_${arch} kernels half)
      target_link_libraries(glmd_emu_${arch} PUBLIC glmd_flags)
      target_compile_definitions(glmd_emu_${arch} PUBLIC EMU_ARCH=${arch})
    endif()
    set(libs "")
    foreach(lib ${A_LIBS})
      string(REPLACE "@ARCH@" "${arch}" lib "${lib}")
      list(APPEND libs "${lib}")
    endforeach()
    set(long "")
    if(A_LONG)
      set(long LONG)
    endif()
    glmd_unit_test(${name}_${arch} SOURCES ${A_SOURCES} ROOMS kernels half ${A_ROOMS}
      LIBS ${libs} glmd_emu_${arch} ${long})
  endforeach()
  foreach(source ${A_SOURCES})
    if(source MATCHES "[.]cu$")
      set_source_files_properties("${source}" PROPERTIES LANGUAGE CXX)
    endif()
  endforeach()
endfunction()
