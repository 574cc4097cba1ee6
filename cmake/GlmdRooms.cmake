# The rooms of the source tree and the arrows between them.
#
# A source file includes headers as "room/file.h". Each room is reachable only through an include
# root of its own, <build>/rooms/<room>, which holds one symbolic link back into the tree, and a
# target gets only the roots its row of the README's code map allows: a wrong arrow does not compile.

function(glmd_room name path)
  set(root "${CMAKE_BINARY_DIR}/rooms/${name}")
  get_filename_component(parent "${root}/${path}" DIRECTORY)
  file(MAKE_DIRECTORY "${parent}")
  file(CREATE_LINK "${CMAKE_SOURCE_DIR}/${path}" "${root}/${path}" SYMBOLIC)
endfunction()

glmd_room(base base)
glmd_room(half base/half.h) # the one header kernels/ may use
glmd_room(model model)
glmd_room(kernels kernels)
glmd_room(plan proto/plan.h) # step plan and validator, without any RPC
glmd_room(proto proto)
glmd_room(engine worker/engine)
glmd_room(worker worker)
glmd_room(coordinator coordinator)
glmd_room(cli cli)
glmd_room(tests tests)

# glmd_rooms(TARGET room...): let TARGET include the headers of these rooms.
function(glmd_rooms target)
  foreach(room ${ARGN})
    target_include_directories(${target} PRIVATE "${CMAKE_BINARY_DIR}/rooms/${room}")
  endforeach()
endfunction()

# glmd_library(NAME SOURCES ... ROOMS ... LIBS ...): a static library of one room.
function(glmd_library name)
  cmake_parse_arguments(A "" "" "SOURCES;ROOMS;LIBS" ${ARGN})
  add_library(${name} STATIC ${A_SOURCES})
  glmd_rooms(${name} ${A_ROOMS})
  target_link_libraries(${name} PUBLIC glmd_flags ${A_LIBS})
endfunction()

# glmd_executable(NAME SOURCES ... ROOMS ... LIBS ...): a program in build/<preset>/bin.
function(glmd_executable name)
  cmake_parse_arguments(A "" "" "SOURCES;ROOMS;LIBS" ${ARGN})
  add_executable(${name} ${A_SOURCES})
  glmd_rooms(${name} ${A_ROOMS})
  target_link_libraries(${name} PRIVATE glmd_flags ${A_LIBS})
endfunction()

# glmd_embed(OUTPUT INPUT NAME): a C file that defines NAME[] and NAME_size, the bytes of a file.
function(glmd_embed output input name)
  set(script "${CMAKE_SOURCE_DIR}/cmake/embed.cmake")
  add_custom_command(OUTPUT "${output}"
    COMMAND "${CMAKE_COMMAND}" "-DINPUT=${input}" "-DOUTPUT=${output}" "-DNAME=${name}"
      -P "${script}"
    DEPENDS "${input}" "${script}")
endfunction()
