# glmd_client: what the verbs share; in a build with the server side also the calls to one.
set(client_sources common.c options.c options_help.c scheme_options.c)
set(client_libs glmd_model_prompt glmd_tokenizer glmd_model glmd_base)
if(NOT GLMD_ENGINE_ONLY)
  # One call after the other, to their end: for the verbs and for the client library.
  glmd_library(glmd_caller
    SOURCES caller.c
    ROOMS base proto cli
    LIBS glmd_base glmd_proto PkgConfig::UV)
  list(APPEND client_sources client.c run_options.c sampling_options.c)
  list(APPEND client_libs glmd_caller glmd_proto PkgConfig::UV)
endif()
glmd_library(glmd_client
  SOURCES ${client_sources}
  ROOMS base model plan proto cli
  LIBS ${client_libs})
