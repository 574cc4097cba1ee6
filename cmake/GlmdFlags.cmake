# Compiler flags that every target of the project links through glmd_flags.
set(CMAKE_C_STANDARD 11)
set(CMAKE_C_EXTENSIONS ON)
set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_C_VISIBILITY_PRESET hidden)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE RelWithDebInfo CACHE STRING "" FORCE)
endif()

# Asserts stay on in release builds, so NDEBUG is never defined.
set(CMAKE_C_FLAGS_RELWITHDEBINFO "-O3 -g")
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O3 -g")

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  set(CMAKE_C_COMPILER_LAUNCHER "${CCACHE_PROGRAM}")
  set(CMAKE_CXX_COMPILER_LAUNCHER "${CCACHE_PROGRAM}")
endif()

find_package(Threads REQUIRED)
add_library(glmd_flags INTERFACE)
target_link_libraries(glmd_flags INTERFACE Threads::Threads)
target_compile_definitions(glmd_flags INTERFACE _GNU_SOURCE GLMD_VERSION="${PROJECT_VERSION}")
# -ffp-contract=off: a*b+c is fused only where the code says fma, so that every compiler and
# every tile of a kernel computes the same bits.
target_compile_options(glmd_flags INTERFACE
  -Wall -Wextra -Wshadow -Wvla -Wpointer-arith -Wno-missing-field-initializers
  $<$<COMPILE_LANGUAGE:C>:-Wstrict-prototypes -Wmissing-prototypes>
  -fno-strict-aliasing -ffp-contract=off)
# GCC 12 (Debian 12's) fails with an internal error on arm64 where it makes a vector loop of fmax or
# fmin; as calls they stay what they are.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$" AND CMAKE_C_COMPILER_ID STREQUAL "GNU"
    AND CMAKE_C_COMPILER_VERSION VERSION_LESS 13)
  target_compile_options(glmd_flags INTERFACE -fno-builtin-fmax -fno-builtin-fmin
    -fno-builtin-fmaxf -fno-builtin-fminf)
endif()
if(GLMD_WERROR)
  target_compile_options(glmd_flags INTERFACE $<$<NOT:$<COMPILE_LANGUAGE:CUDA>>:-Werror>)
endif()

if(GLMD_SANITIZE)
  target_compile_options(glmd_flags INTERFACE
    -fsanitize=${GLMD_SANITIZE} -fno-omit-frame-pointer -O1)
  if(GLMD_SANITIZE MATCHES "undefined")
    target_compile_options(glmd_flags INTERFACE -fno-sanitize-recover=undefined)
  endif()
  target_link_options(glmd_flags INTERFACE -fsanitize=${GLMD_SANITIZE})
else()
  # Where calls and jumps may land: each architecture has its own name for it.
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64|i.86)$")
    set(glmd_landing -fcf-protection)
  elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
    set(glmd_landing -mbranch-protection=standard)
  endif()
  target_compile_options(glmd_flags INTERFACE
    -fstack-protector-strong -fstack-clash-protection ${glmd_landing}
    $<$<NOT:$<CONFIG:Debug>>:-U_FORTIFY_SOURCE> $<$<NOT:$<CONFIG:Debug>>:-D_FORTIFY_SOURCE=2>)
  target_link_options(glmd_flags INTERFACE -Wl,-z,relro -Wl,-z,now -Wl,-z,noexecstack)
endif()
if(GLMD_FUZZ)
  target_compile_options(glmd_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()
include(CheckPIESupported)
check_pie_supported()
