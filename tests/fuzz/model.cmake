# Files from outside that the converter and the loader read.
foreach(name torchzip pickle safetensors config manifest)
  glmd_fuzzer(fuzz_model_${name} SOURCES fuzz_model_${name}.c ROOMS base model LIBS glmd_model)
endforeach()
