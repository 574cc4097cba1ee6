# NumPy files that `glmd logits` reads masks from.
glmd_fuzzer(fuzz_npy SOURCES fuzz_npy.c "${CMAKE_SOURCE_DIR}/cli/npy.c" ROOMS base model cli LIBS glmd_model)
