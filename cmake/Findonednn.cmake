# oneDNN's own package file asks for OpenCL where Debian built it with one; only the header and the library are needed.
# Defines the target onednn::onednn.
find_path(onednn_INCLUDE_DIR dnnl.h PATH_SUFFIXES oneapi/dnnl)
find_library(onednn_LIBRARY dnnl)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(onednn REQUIRED_VARS onednn_LIBRARY onednn_INCLUDE_DIR)
if(onednn_FOUND AND NOT TARGET onednn::onednn)
  add_library(onednn::onednn UNKNOWN IMPORTED)
  set_target_properties(onednn::onednn PROPERTIES
    IMPORTED_LOCATION ${onednn_LIBRARY} INTERFACE_INCLUDE_DIRECTORIES ${onednn_INCLUDE_DIR})
endif()
