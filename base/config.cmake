# Configuration: option tables, YAML reader, glmd's own table. Apart from glmd_base because of
# libyaml, which the engine does not need.
if(NOT GLMD_ENGINE_ONLY)
  find_package(PkgConfig REQUIRED)
  pkg_check_modules(YAML REQUIRED IMPORTED_TARGET yaml-0.1)
  glmd_library(glmd_conf
    SOURCES conf.c conf_show.c conf_yaml.c config.c
    ROOMS base
    LIBS glmd_base PkgConfig::YAML)
endif()
