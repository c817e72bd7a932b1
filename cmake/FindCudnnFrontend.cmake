# The headers of cuDNN's C++ frontend, as CudnnFrontend::CudnnFrontend. They are looked for in CUDNN_FRONTEND_INCLUDE_DIR,
# in the usual places, beside the CUDA toolkit, in build/packages (where ./run puts them), and among python3's packages.
# Nothing is there: with PIPEOPTIM_FETCH they come from the frontend's repository.
set(CudnnFrontend_newest_known 1.32.0)  # what PIPEOPTIM_FETCH takes

if(NOT CUDNN_FRONTEND_INCLUDE_DIR)
  find_package(Python3 QUIET COMPONENTS Interpreter)
  if(Python3_Interpreter_FOUND)
    execute_process(COMMAND ${Python3_EXECUTABLE} -c "import site, sys; print(';'.join([*site.getsitepackages(), site.getusersitepackages()]))"
      OUTPUT_VARIABLE CudnnFrontend_python OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
  find_path(CUDNN_FRONTEND_INCLUDE_DIR cudnn_frontend.h
    HINTS ${CUDAToolkit_INCLUDE_DIRS} ${PROJECT_SOURCE_DIR}/build/packages ${CudnnFrontend_python}
    PATH_SUFFIXES include nvidia/cudnn_frontend/include
    DOC "Folder of cudnn_frontend.h")
endif()
if(NOT CUDNN_FRONTEND_INCLUDE_DIR AND PIPEOPTIM_FETCH)
  include(FetchContent)
  FetchContent_Declare(cudnn_frontend GIT_REPOSITORY https://github.com/NVIDIA/cudnn-frontend.git
    GIT_TAG v${CudnnFrontend_newest_known} GIT_SHALLOW ON)
  FetchContent_GetProperties(cudnn_frontend)
  if(NOT cudnn_frontend_POPULATED)
    FetchContent_Populate(cudnn_frontend)  # the headers alone: its own build brings samples and tests
  endif()
  set(CUDNN_FRONTEND_INCLUDE_DIR ${cudnn_frontend_SOURCE_DIR}/include CACHE PATH "Folder of cudnn_frontend.h" FORCE)
endif()

if(CUDNN_FRONTEND_INCLUDE_DIR AND EXISTS ${CUDNN_FRONTEND_INCLUDE_DIR}/cudnn_frontend_version.h)
  file(STRINGS ${CUDNN_FRONTEND_INCLUDE_DIR}/cudnn_frontend_version.h CudnnFrontend_version_lines
    REGEX "define CUDNN_FRONTEND_(MAJOR|MINOR|PATCH)_VERSION +[0-9]+")
  string(REGEX MATCHALL "[0-9]+" CudnnFrontend_VERSION "${CudnnFrontend_version_lines}")
  list(JOIN CudnnFrontend_VERSION "." CudnnFrontend_VERSION)
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(CudnnFrontend REQUIRED_VARS CUDNN_FRONTEND_INCLUDE_DIR
  VERSION_VAR CudnnFrontend_VERSION
  REASON_FAILURE_MESSAGE "The CUDA backend needs the headers of cuDNN's C++ frontend. They are in the Python package nvidia-cudnn-frontend: pip install nvidia-cudnn-frontend, or give the folder of cudnn_frontend.h as -DCUDNN_FRONTEND_INCLUDE_DIR=..., or let CMake fetch them with -DPIPEOPTIM_FETCH=ON.")
if(CudnnFrontend_FOUND AND NOT TARGET CudnnFrontend::CudnnFrontend)
  add_library(CudnnFrontend::CudnnFrontend INTERFACE IMPORTED)
  set_target_properties(CudnnFrontend::CudnnFrontend PROPERTIES  # an imported target's headers are system headers
    INTERFACE_INCLUDE_DIRECTORIES "${CUDNN_FRONTEND_INCLUDE_DIR}")
endif()
mark_as_advanced(CUDNN_FRONTEND_INCLUDE_DIR)
