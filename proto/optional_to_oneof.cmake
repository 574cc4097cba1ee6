# optional_to_oneof.cmake: INPUT (.proto) -> OUTPUT, with `optional T x = n;` rewritten as
# `oneof x_presence { T x = n; }`, which is the same on the wire.
file(READ "${INPUT}" text)
string(REGEX REPLACE "\n( *)optional ([a-z0-9]+) ([a-z0-9_]+) = ([0-9]+);"
  "\n\\1oneof \\3_presence { \\2 \\3 = \\4; }" text "${text}")
if(text MATCHES "\n *optional ")
  message(FATAL_ERROR "${INPUT}: an optional field that this script does not understand")
endif()
file(WRITE "${OUTPUT}" "${text}")
