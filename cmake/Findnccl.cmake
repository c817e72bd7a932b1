# NCCL 2.19 or newer, as nccl::nccl.
include(NvidiaLibrary)
pipeoptim_find_nvidia_library(nccl nccl.h NCCL)
