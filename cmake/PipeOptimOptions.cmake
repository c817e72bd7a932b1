# Options, the compilers' flags, and pipeoptim_library(): one target per folder.

include(CheckLanguage)
include(GNUInstallDirs)

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

check_language(CUDA)
if(CMAKE_CUDA_COMPILER)
  set(cuda_default ON)
else()
  set(cuda_default OFF)
endif()
option(PIPEOPTIM_CUDA "Build the CUDA backend beside the host backend" ${cuda_default})
option(PIPEOPTIM_TESTS "Build the tests and examples" ON)
option(PIPEOPTIM_BENCH "Build the benchmarks" OFF)
option(PIPEOPTIM_NATIVE "Tune host code for the processor of this machine (off: x86-64-v3)" ON)
set(PIPEOPTIM_SANITIZE "" CACHE STRING "Sanitizers for everything, e.g. address,undefined or thread")

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()

if(PIPEOPTIM_CUDA)
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80 90 100)
  endif()
  set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
  enable_language(CUDA)
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc 12 and newer have C++20
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  endif()
  find_package(CUDAToolkit 13 REQUIRED)
endif()

find_package(Threads REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS CXX)
if(PIPEOPTIM_SANITIZE MATCHES "thread")
  # ThreadSanitizer does not see how OpenMP's threads wait for one another and would weigh each access of theirs
  # as a race, for minutes: there, teams are of one thread.
  set(OpenMP_CXX_FLAGS -fopenmp-simd -Wno-unknown-pragmas)
  set_target_properties(OpenMP::OpenMP_CXX PROPERTIES INTERFACE_COMPILE_OPTIONS "${OpenMP_CXX_FLAGS}")
endif()
# The libraries that docs/dependencies.md accounts for; found here so that every folder sees their targets.
find_package(onednn REQUIRED)
find_package(ZLIB REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(CLI11 REQUIRED)
find_package(tomlplusplus REQUIRED)
find_package(fmt REQUIRED)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(host_arch $<IF:$<BOOL:${PIPEOPTIM_NATIVE}>,-march=native,-march=x86-64-v3>)
endif()
# Contraction is off everywhere: fused = apart and host = device hold bit for bit in the optimizer files.
set(host_flags ${host_arch} -ffp-contract=off -fno-math-errno -fno-trapping-math ${OpenMP_CXX_FLAGS})
set(warnings -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wno-restrict -Werror)  # restrict: false alarms of g++ 12 in std::string
list(JOIN host_flags "," host_flags_joined)

function(pipeoptim_flags target)
  target_include_directories(${target} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:${warnings};-Wpedantic;${host_flags}>)
  if(PIPEOPTIM_CUDA)
    target_compile_definitions(${target} PUBLIC PIPEOPTIM_WITH_CUDA=1)
    target_compile_options(${target} PRIVATE
      $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false;-Werror=all-warnings;-Xptxas=--warn-on-spills,--warn-on-local-memory-usage;-Xcompiler=-Wall,-Wextra,-Wno-restrict,-Werror;-Xcompiler=${host_flags_joined}>)
  endif()
  if(PIPEOPTIM_SANITIZE)
    target_compile_options(${target} PUBLIC
      $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${PIPEOPTIM_SANITIZE};-fno-sanitize-recover=all;-fno-omit-frame-pointer>)
    target_link_options(${target} PUBLIC -fsanitize=${PIPEOPTIM_SANITIZE})
  endif()
endfunction()

# .cu files hold kernels: CUDA where there is a CUDA compiler, otherwise the same text as C++.
function(pipeoptim_kernel_files)
  foreach(file IN LISTS ARGN)
    if(file MATCHES "\\.cu$")
      set_property(SOURCE ${file} APPEND PROPERTY COMPILE_DEFINITIONS PIPEOPTIM_KERNEL_FILE)
      if(NOT PIPEOPTIM_CUDA)
        set_source_files_properties(${file} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
      endif()
    endif()
  endforeach()
endfunction()

# pipeoptim_library(NAME LINK libraries...): all sources of this folder; cuda/*.{cpp,cu} only with CUDA,
# cuda/*_stub.cpp only without it.
function(pipeoptim_library name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "LINK;PRIVATE_LINK;FOLDERS")
  set(sources)
  foreach(folder IN ITEMS . host ${arg_FOLDERS})
    file(GLOB found CONFIGURE_DEPENDS ${folder}/*.cpp ${folder}/*.cu)
    list(APPEND sources ${found})
  endforeach()
  foreach(folder IN ITEMS cuda runtime/cuda)
    if(PIPEOPTIM_CUDA)
      file(GLOB found CONFIGURE_DEPENDS ${folder}/*.cpp ${folder}/*.cu)
      list(FILTER found EXCLUDE REGEX "_stub\\.cpp$")
    else()
      file(GLOB found CONFIGURE_DEPENDS ${folder}/*_stub.cpp)
    endif()
    list(APPEND sources ${found})
  endforeach()
  pipeoptim_kernel_files(${sources})
  add_library(pipeoptim_${name} STATIC ${sources})
  add_library(PipeOptim::${name} ALIAS pipeoptim_${name})
  pipeoptim_flags(pipeoptim_${name})
  target_link_libraries(pipeoptim_${name} PUBLIC ${arg_LINK} PRIVATE ${arg_PRIVATE_LINK})
endfunction()
