# Converts every checkpoint of the reference data: GLMD (program, behind what runs it), SOURCE, OUT (folders). Weights stay
# what they are: FP16 checkpoints become FP16 models, quantized ones keep their codes and scales.
file(REMOVE_RECURSE "${OUT}")
file(MAKE_DIRECTORY "${OUT}")
# "-head8" behind the name of a checkpoint: the same with an INT8 head.
foreach(name fp16-tp1 fp16-tp2 fp16-tp4 int4-tp1 int4-tp1-head8 int4-tp2 int4-tp4 int8-tp2)
  set(weights "")
  string(REPLACE "-head8" "" checkpoint "${name}")
  if(NOT checkpoint STREQUAL name)
    set(weights --head int8)
  endif()
  if(name MATCHES "^fp16")
    set(weights --weights fp16)
  endif()
  execute_process(
    COMMAND ${GLMD} convert --from "${SOURCE}/ckpt-${checkpoint}" --out "${OUT}/${name}"
      --config "${SOURCE}/config.json" --tokenizer "${SOURCE}/tokenizer.model" ${weights}
    RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "glmd convert ${name}: ${result}\n${output}")
  endif()
endforeach()
