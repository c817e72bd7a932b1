#!/usr/bin/env bash
# An optimizer's step with prediction, PipeOptim against PyTorch, in turns: compare.sh [optimizer_bench] [rounds].
# Prints PyTorch's time over that of the fused pass, both medians. torch.sh says how PyTorch is run.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
program=${1:-$here/../../build/host/bench/optimizer_bench}
rounds=${2:-3}
# shellcheck source=bench/peers/torch.sh
. "$here/torch.sh"

results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
for round in $(seq "$rounds"); do
  "$program" --benchmark_filter='/(16M|10000x112)/' --benchmark_out="$results/$round.json" >/dev/null 2>&1
  peer torch_optimizer.py --elements $((1 << 24))
  peer torch_optimizer.py --elements 1120000 --tensors 10000 --rules adamw
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
