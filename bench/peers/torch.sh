# For the scripts beside this one, which source it: how PyTorch is run. PYTHON names an interpreter that has it,
# PIPEOPTIM_BENCH_THREADS the threads of both sides. PyTorch gets huge pages and keeps the memory that it freed: without
# these settings it spends most of the time on page faults.
# shellcheck shell=bash
peers=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
export PIPEOPTIM_BENCH_THREADS=${PIPEOPTIM_BENCH_THREADS:-$(env -u OMP_NUM_THREADS nproc)}

peer() { # peer program [options...]
  env -u OPENBLAS_NUM_THREADS -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE \
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=8589934592 \
    "${PYTHON:-/usr/bin/python3}" "$peers/$1" --threads "$PIPEOPTIM_BENCH_THREADS" "${@:2}"
}
