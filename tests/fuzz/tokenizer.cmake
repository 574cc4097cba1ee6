# The tokenizer: model files, text in, ids out, text with masks.
glmd_fuzzer(fuzz_tokenizer_model SOURCES ${CMAKE_CURRENT_LIST_DIR}/fuzz_tokenizer_model.c
  ROOMS base model LIBS glmd_tokenizer glmd_model)
set(golden_arch "${CMAKE_SOURCE_DIR}/tests/unit/coordinator/golden_arch.c")
glmd_fuzzer(fuzz_tokenizer_text SOURCES ${CMAKE_CURRENT_LIST_DIR}/fuzz_tokenizer_text.c
  ${golden_arch} ROOMS base model LIBS glmd_tokenizer glmd_model)
glmd_fuzzer(fuzz_prompt_text SOURCES ${CMAKE_CURRENT_LIST_DIR}/fuzz_prompt_text.c
  ${golden_arch} ROOMS base model LIBS glmd_model_prompt glmd_tokenizer glmd_model)
foreach(target fuzz_tokenizer_text fuzz_prompt_text)
  target_compile_definitions(${target} PRIVATE
    GLMD_GOLDEN_TOKENIZER="${CMAKE_SOURCE_DIR}/tests/golden/glm130b/tokenizer.model")
endforeach()
