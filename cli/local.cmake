# What the verbs that run the engine without a server share.
glmd_library(glmd_cli_local
  SOURCES fit.c fit_words.c local_engine.c logits_cases.c npy.c
  ROOMS base model plan kernels engine cli
  LIBS glmd_engine glmd_model glmd_base)
