# Finds nvcc. The CUDA side is one shared object, libglmd_cuda.so, opened at run time; nothing
# else in the tree depends on the toolkit.
set(GLMD_CUDA_ARCHS "" CACHE STRING
  "Architectures to build for, as 80;90a. native: that of this host's GPU, without one 90a. Empty: \
the same with GLMD_CUDA=AUTO; with ON, where there is no GPU, all that glmd knows (75 80 86 89 90a \
100 120, as far as nvcc does)")
set(GLMD_HAVE_CUDA OFF)
if(GLMD_SANITIZE AND GLMD_CUDA STREQUAL "AUTO")
  # the host's half is tested with the emulated GPU; nvcc knows no sanitizers
elseif(NOT GLMD_CUDA STREQUAL "OFF")
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

# Which architectures: cmake's list, machine code only.
if(GLMD_HAVE_CUDA)
  set(CMAKE_CUDA_ARCHITECTURES OFF) # said per target
  if(CCACHE_PROGRAM)
    set(CMAKE_CUDA_COMPILER_LAUNCHER "${CCACHE_PROGRAM}")
  endif()
  enable_language(CUDA)
  set(cuda_archs ${GLMD_CUDA_ARCHS})
  if(NOT cuda_archs OR cuda_archs STREQUAL "native")
    execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
      OUTPUT_VARIABLE found RESULT_VARIABLE failed ERROR_QUIET)
    if(NOT failed)
      string(REGEX MATCHALL "[0-9]+[.][0-9]" found "${found}")
      string(REPLACE "." "" cuda_archs "${found}")
      list(REMOVE_DUPLICATES cuda_archs)
      list(TRANSFORM cuda_archs REPLACE "^90$" "90a")
    elseif(GLMD_CUDA STREQUAL "ON" AND NOT cuda_archs)
      set(cuda_archs 75 80 86 89 90a 100 120)
    else()
      set(cuda_archs 90a)
    endif()
  endif()
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE known)
  set(GLMD_CUDA_ARCH_LIST "")
  foreach(arch ${cuda_archs})
    string(REGEX REPLACE "[a-z]+$" "" number "${arch}")
    if(known MATCHES "sm_${number}\n")
      list(APPEND GLMD_CUDA_ARCH_LIST "${arch}-real")
    else()
      message(STATUS "CUDA backend: this nvcc does not know sm_${arch}")
    endif()
  endforeach()
endif()
message(STATUS "CUDA backend: ${GLMD_HAVE_CUDA} ${GLMD_CUDA_ARCH_LIST}")

# Files of the CUDA backend, in kernels/.
set(GLMD_CUDA_SOURCES
  cuda/attention.cu cuda/bench.c cuda/bench_kernels.cu cuda/blas_lt.cu cuda/comm.c cuda/comm_nccl.c
  cuda/comm_peer.c
  cuda/convert.cu cuda/cuda.c cuda/driver_cuda.c cuda/feed.c cuda/graph.c cuda/kv.cu
  cuda/library.cu cuda/linear.cu cuda/mailbox.c cuda/memory.c cuda/nccl_library.c cuda/nccl_log.c cuda/ops.c cuda/plan.c
  cuda/rope.cu cuda/rowwise.cu cuda/sample.c cuda/sample.cu cuda/sample_layout.c cuda/step.c
  cuda/sums.cu cuda/variants_f16.cu cuda/variants_i4.cu cuda/variants_i8.cu)
