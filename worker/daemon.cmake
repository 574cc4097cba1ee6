# The daemon of one rank: a static library, and a thin main.
find_package(PkgConfig REQUIRED)
glmd_library(glmd_worker
  SOURCES comm_watch.c health.c identity.c link.c options.c runner.c session.c worker.c
  ROOMS base model kernels plan proto engine worker
  LIBS glmd_engine glmd_model glmd_proto glmd_mailbox glmd_conf uv)
glmd_executable(glmd-worker
  SOURCES main.c
  ROOMS base worker
  LIBS glmd_worker)
install(TARGETS glmd-worker RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
