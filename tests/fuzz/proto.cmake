# Every message that arrives from outside.
if(NOT GLMD_ENGINE_ONLY)
  foreach(message generate_request fill_request score_request tokenize_request detokenize_request
      generate_response fill_response score_response tokenize_response detokenize_response
      list_models_response status_response worker_message coordinator_message
      kserve_infer_request kserve_infer_response kserve_stream_response kserve_model_metadata)
    set(name "fuzz_proto_${message}")
    glmd_fuzzer(${name} RUNS 100000 SOURCES fuzz_proto.c ROOMS base proto LIBS glmd_proto)
    target_compile_definitions(${name} PRIVATE FUZZ_MESSAGE=${message} FUZZ_TYPE=wire_${message})
  endforeach()
  target_compile_definitions(fuzz_proto_coordinator_message PRIVATE FUZZ_STEPS)
endif()
