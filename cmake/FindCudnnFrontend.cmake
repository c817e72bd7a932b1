# The headers of cuDNN's C++ frontend, as CudnnFrontend::CudnnFrontend: in CUDNN_FRONTEND_INCLUDE_DIR (a CMake or an
# environment variable), in build/packages (where cmake/cudnn_frontend.sh puts them), in the usual places, beside the
# CUDA toolkit, among the packages of python3, or, with PIPEOPTIM_FETCH, from the frontend's repository.
include(FindPackageHandleStandardArgs)

if(NOT CUDNN_FRONTEND_INCLUDE_DIR)
  find_program(CudnnFrontend_PYTHON python3)
  if(CudnnFrontend_PYTHON)
    execute_process(OUTPUT_VARIABLE CudnnFrontend_site_packages OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET
      COMMAND ${CudnnFrontend_PYTHON} -c "import sys; print(';'.join(p for p in sys.path if p))")
  endif()
  find_path(CUDNN_FRONTEND_INCLUDE_DIR cudnn_frontend.h DOC "Folder of cudnn_frontend.h"
    HINTS ENV CUDNN_FRONTEND_INCLUDE_DIR ${PROJECT_SOURCE_DIR}/build/packages ${CUDAToolkit_INCLUDE_DIRS}
    PATHS ${CudnnFrontend_site_packages} PATH_SUFFIXES include)
  mark_as_advanced(CudnnFrontend_PYTHON)
endif()
if(NOT CUDNN_FRONTEND_INCLUDE_DIR AND PIPEOPTIM_FETCH)
  include(FetchContent)
  FetchContent_Declare(cudnn_frontend GIT_REPOSITORY https://github.com/NVIDIA/cudnn-frontend.git GIT_TAG v1.32.0
    GIT_SHALLOW ON SOURCE_SUBDIR include)  # a folder without a CMakeLists.txt: its samples and tests are not wanted
  FetchContent_MakeAvailable(cudnn_frontend)
  set(CUDNN_FRONTEND_INCLUDE_DIR ${cudnn_frontend_SOURCE_DIR}/include CACHE PATH "Folder of cudnn_frontend.h" FORCE)
endif()

if(EXISTS ${CUDNN_FRONTEND_INCLUDE_DIR}/cudnn_frontend_version.h)
  file(STRINGS ${CUDNN_FRONTEND_INCLUDE_DIR}/cudnn_frontend_version.h CudnnFrontend_version_lines
    REGEX "define CUDNN_FRONTEND_(MAJOR|MINOR|PATCH)_VERSION +[0-9]+")
  string(REGEX MATCHALL "[0-9]+" CudnnFrontend_VERSION "${CudnnFrontend_version_lines}")
  list(JOIN CudnnFrontend_VERSION "." CudnnFrontend_VERSION)
endif()
string(CONCAT CudnnFrontend_advice
  "The CUDA backend needs the headers of cuDNN's C++ frontend, which the Python package nvidia-cudnn-frontend brings. "
  "Either run cmake/cudnn_frontend.sh or 'pip install nvidia-cudnn-frontend', or name the folder of cudnn_frontend.h "
  "with -DCUDNN_FRONTEND_INCLUDE_DIR=..., or allow CMake to fetch it with -DPIPEOPTIM_FETCH=ON.")
find_package_handle_standard_args(CudnnFrontend REQUIRED_VARS CUDNN_FRONTEND_INCLUDE_DIR
  VERSION_VAR CudnnFrontend_VERSION REASON_FAILURE_MESSAGE "${CudnnFrontend_advice}")
if(CudnnFrontend_FOUND AND NOT TARGET CudnnFrontend::CudnnFrontend)
  add_library(CudnnFrontend::CudnnFrontend INTERFACE IMPORTED)  # the headers of imported targets are system headers
  target_include_directories(CudnnFrontend::CudnnFrontend INTERFACE ${CUDNN_FRONTEND_INCLUDE_DIR})
endif()
mark_as_advanced(CUDNN_FRONTEND_INCLUDE_DIR)
