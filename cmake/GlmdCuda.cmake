# Finds nvcc. The CUDA side is one shared object, libglmd_cuda.so, opened at run time; nothing
# else in the tree depends on the toolkit.
set(GLMD_HAVE_CUDA OFF)
if(NOT GLMD_CUDA STREQUAL "OFF")
  if(NOT CMAKE_CUDA_COMPILER)
    find_program(GLMD_NVCC nvcc HINTS /usr/local/cuda/bin)
    if(GLMD_NVCC)
      set(CMAKE_CUDA_COMPILER "${GLMD_NVCC}")
    endif()
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(GLMD_HAVE_CUDA ON)
  elseif(GLMD_CUDA STREQUAL "ON")
    message(FATAL_ERROR "GLMD_CUDA=ON, but no nvcc was found: put it on PATH or set CMAKE_CUDA_COMPILER")
  endif()
endif()
message(STATUS "CUDA backend: ${GLMD_HAVE_CUDA}")

# Files of the CUDA backend, in kernels/.
set(GLMD_CUDA_SOURCES
  cuda/attention.cu cuda/convert.cu cuda/cuda.c cuda/driver_cuda.c cuda/kv.cu cuda/rope.cu
  cuda/rowwise.cu cuda/step.c)
