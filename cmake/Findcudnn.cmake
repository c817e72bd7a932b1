# cuDNN 9 or newer, as cudnn::cudnn.
include(NvidiaLibrary)
pipeoptim_find_nvidia_library(cudnn cudnn_version.h CUDNN)
