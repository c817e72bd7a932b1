# The body of a find module for a library that NVIDIA ships without a package file: looks beside the CUDA toolkit too,
# reads PREFIX_MAJOR and PREFIX_MINOR from the header, and makes the target NAME::NAME.
include(FindPackageHandleStandardArgs)

macro(pipeoptim_find_nvidia_library name header prefix)
  find_path(${name}_INCLUDE_DIR NAMES ${header} HINTS ${CUDAToolkit_INCLUDE_DIRS})
  find_library(${name}_LIBRARY NAMES ${name} HINTS ${CUDAToolkit_LIBRARY_DIR})
  if(${name}_INCLUDE_DIR)
    file(STRINGS ${${name}_INCLUDE_DIR}/${header} ${name}_version_lines
      REGEX "define ${prefix}_(MAJOR|MINOR) +[0-9]+")
    string(REGEX MATCHALL "[0-9]+" ${name}_VERSION "${${name}_version_lines}")
    list(JOIN ${name}_VERSION "." ${name}_VERSION)
  endif()
  find_package_handle_standard_args(${name} REQUIRED_VARS ${name}_LIBRARY ${name}_INCLUDE_DIR
    VERSION_VAR ${name}_VERSION)
  if(${name}_FOUND AND NOT TARGET ${name}::${name})
    add_library(${name}::${name} UNKNOWN IMPORTED)
    set_target_properties(${name}::${name} PROPERTIES IMPORTED_LOCATION "${${name}_LIBRARY}"
      INTERFACE_INCLUDE_DIRECTORIES "${${name}_INCLUDE_DIR}")
  endif()
  mark_as_advanced(${name}_INCLUDE_DIR ${name}_LIBRARY)
endmacro()
