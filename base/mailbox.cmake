# The mailbox, apart from glmd_base because of libuv, which the engine does not need.
if(NOT GLMD_ENGINE_ONLY)
  glmd_library(glmd_mailbox
    SOURCES mailbox.c
    ROOMS base
    LIBS glmd_base uv)
endif()
