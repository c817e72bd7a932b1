#!/usr/bin/env bash
# A training step, PipeOptim against PyTorch, in turns: compare_steps.sh [step_bench] [rounds] [models...]
# Prints milliseconds a step and the ratio of ours to PyTorch's, both the best of their settings: PyTorch's are those of
# torch_step.py, ours one stage with all threads and a pipeline of two stages, each with OMP_WAIT_POLICY active and
# passive. A time is the median of its rounds. torch.sh says how PyTorch is run.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
program=${1:-$here/../../build/host/bench/step_bench}
rounds=${2:-3}
models=("${@:3}")
[ ${#models[@]} -gt 0 ] || models=(mlp resnet20 vgg16 gpt lstm)
# shellcheck source=bench/peers/torch.sh
. "$here/torch.sh"

results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
for model in "${models[@]}"; do
  for round in $(seq "$rounds"); do
    for policy in active passive; do
      echo "$model, round $round, $policy" >&2
      OMP_WAIT_POLICY=$policy "$program" --benchmark_filter="step/$model/" \
        --benchmark_out="$results/$model.$round.$policy.json" >/dev/null 2>&1
      OMP_WAIT_POLICY=$policy peer torch_step.py --models "$model" --steps 5 >"$results/$model.$round.$policy.torch"
    done
  done
done

python3 - "$results" "${models[@]}" <<'PYTHON'
import collections, json, pathlib, statistics, sys

results = pathlib.Path(sys.argv[1])


def best(times, prefix):
    """The least median of the settings that begin so, in milliseconds, and its name."""
    medians = {name: statistics.median(values) for name, values in times.items() if name.startswith(prefix)}
    name = min(medians, key=medians.get)
    return 1e3 * medians[name], name


print(f"{'model':10}{'ours, ms':>10}{'PyTorch, ms':>13}{'ratio':>8}{'its bf16':>10}{'ratio':>8}  settings")
for model in sys.argv[2:]:
    ours, theirs = collections.defaultdict(list), collections.defaultdict(list)
    for file in results.glob(f"{model}.*.json"):
        policy = file.name.split(".")[2]
        (benchmark,) = json.loads(file.read_text())["benchmarks"]
        for form in ("sequential", "pipelined"):
            ours[f"{form} {policy}"].append(benchmark[f"{form}_s"])
    for file in results.glob(f"{model}.*.torch"):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            theirs[f"{entry['setting']} {file.name.split('.')[2]}"].append(entry["seconds"])
    mine, my_setting = best(ours, "")
    fp32, fp32_setting = best(theirs, "fp32")
    bf16, _ = best(theirs, "bf16")
    print(f"{model:10}{mine:10.1f}{fp32:13.1f}{mine / fp32:8.2f}{bf16:10.1f}{mine / bf16:8.2f}  "
          f"{my_setting} | {fp32_setting}")
PYTHON
