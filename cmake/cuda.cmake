# The CUDA kernels: _C_cuda by nvcc, and their emulation for the tests by the C++ compiler.
# Included by CMakeLists.txt.

file(GLOB CLSD_CUDA_KERNELS CONFIGURE_DEPENDS csrc/cuda/*.cu)
file(GLOB CLSD_CUDA_OPERATORS CONFIGURE_DEPENDS csrc/cuda/*.cpp)

# _emulated: the same sources for tensors on the CPU. Not part of an installation: the tests ask for it.
file(GLOB CLSD_EMULATION_SOURCES CONFIGURE_DEPENDS tests/cuda_emulation/*.cpp
     tests/cuda_emulation/*.cu)
if(CLSD_EMULATION_SOURCES)
  add_library(_emulated MODULE EXCLUDE_FROM_ALL ${CLSD_CUDA_OPERATORS} ${CLSD_EMULATION_SOURCES})
  # The .cu sources are C++ here. As objects of their own, they can be CUDA for the other library.
  foreach(source ${CLSD_CUDA_KERNELS} ${CLSD_EMULATION_SOURCES})
    get_filename_component(name ${source} NAME)
    if(name MATCHES "\\.cu$")
      set(wrapper ${CMAKE_CURRENT_BINARY_DIR}/emulated/${name}.cpp)
      file(CONFIGURE OUTPUT ${wrapper} CONTENT "#include \"@source@\"\n" @ONLY)
      target_sources(_emulated PRIVATE ${wrapper})
    endif()
  endforeach()
  clsd_uses_torch(_emulated)
  target_include_directories(_emulated PRIVATE csrc/cuda tests/cuda_emulation)
  target_compile_definitions(_emulated PRIVATE CLSD_CUDA_EMULATION)
  # Fibers are switched by longjmp, which the fortified one takes for an error.
  target_compile_options(_emulated PRIVATE -O2 -Wno-unknown-pragmas -U_FORTIFY_SOURCE)
endif()
