# glmd_bench: what `glmd bench` needs; the verbs themselves run the engine or a server.
find_package(PkgConfig REQUIRED)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)
set(bench_sources bench_engine.c bench_loading.c bench_model.c bench_output.c bench_plot.c
  bench_profile.c bench_stages.c bench_stats.c
  bench_target.c)
set(bench_libs glmd_client glmd_cli_local glmd_engine glmd_model glmd_kernels glmd_plan glmd_base
  PkgConfig::XXHASH m)
if(NOT GLMD_ENGINE_ONLY)
  list(APPEND bench_sources bench_cluster.c bench_daemon.c bench_daemon_report.c bench_dataset.c bench_load.c
       bench_rpc.c bench_rpc_report.c bench_serve.c)
  list(APPEND bench_libs glmd_proto PkgConfig::UV)
endif()
glmd_library(glmd_bench
  SOURCES ${bench_sources}
  ROOMS base model plan proto engine kernels cli
  LIBS ${bench_libs})
