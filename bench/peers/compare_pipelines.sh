#!/usr/bin/env bash
# A training step through two stages of one thread each, PipeOptim against torch.distributed.pipelining, in turns:
# compare_pipelines.sh [step_bench] [rounds] [models...]
# Prints milliseconds a step and the ratio of ours to PyTorch's best setting. Ours is asynchronous, in one process, fill
# and drain of a pass included; theirs is 1F1B over gloo in two processes, with 2, 4 or 8 micro-batches. A time is the
# median of its rounds. torch.sh says how PyTorch is run, torch_pipeline.py which version it has to be.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
program=${1:-$here/../../build/host/bench/step_bench}
rounds=${2:-3}
models=("${@:3}")
[ ${#models[@]} -gt 0 ] || models=(mlp resnet20 vgg16 gpt)
export PIPEOPTIM_BENCH_THREADS=2
# shellcheck source=bench/peers/torch.sh
. "$here/torch.sh"

results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
for model in "${models[@]}"; do
  for round in $(seq "$rounds"); do
    echo "$model, round $round" >&2
    "$program" --benchmark_filter="step/$model/" --benchmark_out="$results/$model.$round.json" >/dev/null 2>&1
    peer torch_pipeline.py --models "$model" --micro-batches 2 4 8 --steps 5 >"$results/$model.$round.torch"
  done
done

python3 - "$results" "${models[@]}" <<'PYTHON'
import collections, json, pathlib, statistics, sys

results = pathlib.Path(sys.argv[1])
print(f"{'model':10}{'ours, ms':>10}{'PyTorch, ms':>13}{'ratio':>8}  its best setting")
for model in sys.argv[2:]:
    ours, theirs = [], collections.defaultdict(list)
    for file in results.glob(f"{model}.*.json"):
        (benchmark,) = json.loads(file.read_text())["benchmarks"]
        ours.append(1e3 * benchmark["pipelined_s"])
    for file in results.glob(f"{model}.*.torch"):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            if "setting" in entry:
                theirs[entry["setting"].partition(", cut")[0]].append(1e3 * entry["seconds"])
    best = min(theirs, key=lambda setting: statistics.median(theirs[setting]))
    mine, peer = statistics.median(ours), statistics.median(theirs[best])
    print(f"{model:10}{mine:10.1f}{peer:13.1f}{mine / peer:8.2f}  {best}")
PYTHON
