# Toolchain file: arm64 on Debian's cross compiler. GLMD_SYSROOT is a folder with that architecture's
# libraries (tests/arm64 makes one); what is built runs under qemu-user.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES GLMD_SYSROOT)
set(CMAKE_SYSROOT "${GLMD_SYSROOT}")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L "${GLMD_SYSROOT}")
set(ENV{PKG_CONFIG_SYSROOT_DIR} "${GLMD_SYSROOT}")
set(ENV{PKG_CONFIG_LIBDIR}
  "${GLMD_SYSROOT}/usr/lib/aarch64-linux-gnu/pkgconfig:${GLMD_SYSROOT}/usr/share/pkgconfig")
