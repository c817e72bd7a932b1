#!/usr/bin/env bash
# An optimizer's step with prediction, PipeOptim against PyTorch, in turns: compare.sh [optimizer_bench] [rounds].
# Prints PyTorch's time over that of the fused pass, both medians. PYTHON names an interpreter that has PyTorch,
# PIPEOPTIM_BENCH_THREADS the threads of both. PyTorch gets huge pages and keeps the memory that it freed: without
# these settings it spends most of the time on page faults.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
program=${1:-$here/../../build/host/bench/optimizer_bench}
rounds=${2:-3}
export PIPEOPTIM_BENCH_THREADS=${PIPEOPTIM_BENCH_THREADS:-$(env -u OMP_NUM_THREADS nproc)}
python=${PYTHON:-/usr/bin/python3}
tunables=glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=8589934592

peer() { # peer [options of torch_optimizer.py...]
  env -u OPENBLAS_NUM_THREADS GLIBC_TUNABLES="$tunables" "$python" "$here/torch_optimizer.py" \
    --threads "$PIPEOPTIM_BENCH_THREADS" "$@"
}

results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
for round in $(seq "$rounds"); do
  "$program" --benchmark_filter='/(16M|10000x112)/' --benchmark_out="$results/$round.json" >/dev/null 2>&1
  peer --elements $((1 << 24))
  peer --elements 1120000 --tensors 10000 --rules adamw
done >"$results/torch"

python3 - "$results" <<'PYTHON'
import collections, json, pathlib, statistics, sys

results = pathlib.Path(sys.argv[1])
sizes = {"16M": 1 << 24, "10000x112": 1120000}
ours, theirs = collections.defaultdict(list), collections.defaultdict(list)
for file in results.glob("*.json"):
    for benchmark in json.loads(file.read_text())["benchmarks"]:
        rule, size = benchmark["name"].split("/")[:2]
        ours[rule, sizes[size]].append(benchmark["fused_s"])
for line in (results / "torch").read_text().splitlines():
    entry = json.loads(line)
    theirs[entry["rule"], entry["elements"], entry["mode"]].append(entry["seconds"])
print(f"{'rule':10}{'elements':>10}  {'mode':10}{'PyTorch / PipeOptim':>20}")
for (rule, elements, mode), seconds in theirs.items():
    ratio = statistics.median(seconds) / statistics.median(ours[rule, elements])
    print(f"{rule:10}{elements:>10}  {mode:10}{ratio:>20.2f}")
PYTHON
