# The CUDA kernels: _C_cuda, by nvcc. Included by CMakeLists.txt.

file(GLOB CLSD_CUDA_KERNELS CONFIGURE_DEPENDS csrc/cuda/*.cu)
file(GLOB CLSD_CUDA_OPERATORS CONFIGURE_DEPENDS csrc/cuda/*.cpp)

# TORCH_CUDA_ARCH_LIST ("8.0;9.0a" or "8.0 9.0+PTX") as CMake's list. Containers set it to all that
# PyTorch supports: what is too old for the kernels is left out, and every GPU of 9.0 runs sm_90a.
function(clsd_cuda_architectures list result)
  string(REPLACE " " ";" list "${list}")
  set(architectures "")
  foreach(item ${list})
    if(NOT item MATCHES "^([0-9]+)\\.([0-9])([af]?)(\\+PTX)?$")
      message(FATAL_ERROR
        "TORCH_CUDA_ARCH_LIST: expected items like 8.0, 9.0a or 12.0+PTX, got ${item}")
    endif()
    set(number ${CMAKE_MATCH_1}${CMAKE_MATCH_2})
    set(name ${number}${CMAKE_MATCH_3})
    set(ptx ${CMAKE_MATCH_4})
    if(number LESS 80)
      continue()
    endif()
    if(name STREQUAL "90")
      list(APPEND architectures 90a-real)
    else()
      list(APPEND architectures ${name}-real)
    endif()
    if(ptx)
      list(APPEND architectures ${name}-virtual)
    endif()
  endforeach()
  if(NOT architectures)
    message(FATAL_ERROR "TORCH_CUDA_ARCH_LIST: expected 8.0 or above, got ${list}")
  endif()
  list(REMOVE_DUPLICATES architectures)
  set(${result} ${architectures} PARENT_SCOPE)
endfunction()

# _C_cuda: needs nvcc, but neither a GPU nor a torch for GPUs, whose functions it finds when it is
# loaded. CUDA's own runtime is linked in.
if(NOT CLSD_FAST_CUDA STREQUAL "off")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_ARCHITECTURES 80-real) # else CMake looks for a GPU
    enable_language(CUDA)
    # Newer GPUs take the PTX of 12.0, and 11.0 that of 10.0.
    set(list "8.0;8.6;8.9;9.0a;10.0+PTX;12.0+PTX")
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
      set(list "8.0;8.6;8.9+PTX;9.0a")
    endif()
    if(DEFINED ENV{TORCH_CUDA_ARCH_LIST})
      set(list "$ENV{TORCH_CUDA_ARCH_LIST}")
    endif()
    clsd_cuda_architectures("${list}" CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_STANDARD 17)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    add_library(_C_cuda MODULE ${CLSD_CUDA_OPERATORS} ${CLSD_CUDA_KERNELS})
    clsd_uses_torch(_C_cuda)
    target_compile_definitions(_C_cuda PRIVATE USE_CUDA)
    # The current stream is asked of libtorch_cuda, which a torch without CUDA does not have: this
    # library of its name is for the linker alone. Through it _C_cuda says that it needs
    # libtorch_cuda, whose functions it would not find otherwise: Python loads torch's libraries
    # where others do not see them.
    file(CONFIGURE OUTPUT torch_cuda.cpp CONTENT [[
extern "C" __attribute__((visibility("default"))) void aoti_torch_get_current_cuda_stream() {}
]])
    add_library(torch_cuda SHARED ${CMAKE_CURRENT_BINARY_DIR}/torch_cuda.cpp)
    target_link_libraries(_C_cuda PRIVATE torch_cuda)
    if("90a-real" IN_LIST CMAKE_CUDA_ARCHITECTURES)
      target_compile_definitions(_C_cuda PRIVATE CLSD_HAS_SM90A)
    endif()
    # Profilers and compute-sanitizer name source lines.
    target_compile_options(_C_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-lineinfo>)
  elseif(CLSD_FAST_CUDA STREQUAL "on")
    message(FATAL_ERROR "CLSD_FAST_CUDA=on: expected nvcc on PATH or in CUDACXX, got none")
  endif()
endif()

# _emulated: the same sources for tensors on the CPU, for the tests, which a source distribution has
# not. Nothing installs it.
if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/tests/cuda_emulation)
  add_subdirectory(tests/cuda_emulation EXCLUDE_FROM_ALL)
endif()
