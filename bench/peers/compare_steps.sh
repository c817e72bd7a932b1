#!/usr/bin/env bash
# A training step, PipeOptim against PyTorch, in turns: compare_steps.sh [step_bench] [rounds] [models...]
# Prints milliseconds a step in fp32 and bf16 and the ratios of ours to PyTorch's, both the best of their settings:
# PyTorch's are those of torch_step.py, ours one stage with all threads and a pipeline of two stages, each with
# OMP_WAIT_POLICY active and passive. A time is the median of its rounds. torch.sh says how PyTorch is run.
# Without AVX-512 there is fp32 alone; PRECISIONS="fp32 bf16" names others.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
program=${1:-$here/../../build/host/bench/step_bench}
rounds=${2:-3}
models=("${@:3}")
[ ${#models[@]} -gt 0 ] || models=(mlp resnet20 vgg16 gpt lstm)
read -ra precisions <<<"${PRECISIONS:-fp32 $(if grep -qw avx512bw /proc/cpuinfo; then echo bf16; fi)}"
# shellcheck source=bench/peers/torch.sh
. "$here/torch.sh"

results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
for model in "${models[@]}"; do
  for round in $(seq "$rounds"); do
    for policy in active passive; do
      echo "$model, round $round, $policy" >&2
      for precision in "${precisions[@]}"; do
        OMP_WAIT_POLICY=$policy PIPEOPTIM_BENCH_PRECISION=$precision "$program" \
          --benchmark_filter="step/$model/" \
          --benchmark_out="$results/$model.$round.$policy.$precision.json" >"$results/log" 2>&1 ||
          { cat "$results/log" >&2 && exit 1; }
      done
      OMP_WAIT_POLICY=$policy peer torch_step.py --models "$model" --steps 5 \
        --precisions "${precisions[@]}" >"$results/$model.$round.$policy.torch"
    done
  done
done

python3 - "$results" "${precisions[*]}" "${models[@]}" <<'PYTHON'
import collections, json, pathlib, statistics, sys

results, precisions, models = pathlib.Path(sys.argv[1]), sys.argv[2].split(), sys.argv[3:]


def best(times, prefix):
    """The least median of the settings that begin so, in milliseconds, and its name."""
    medians = {name: statistics.median(values) for name, values in times.items() if name.startswith(prefix)}
    name = min(medians, key=medians.get)
    return 1e3 * medians[name], name


print(f"{'model':10}" + "".join(f"{'ours, ' + p:>12}{'PyTorch':>10}{'ratio':>7}" for p in precisions) + "  settings")
for model in models:
    ours, theirs = collections.defaultdict(list), collections.defaultdict(list)
    for file in results.glob(f"{model}.*.json"):
        _, _, policy, precision, _ = file.name.split(".")
        (benchmark,) = json.loads(file.read_text())["benchmarks"]
        for form in ("sequential", "pipelined"):
            ours[f"{precision} {form} {policy}"].append(benchmark[f"{form}_s"])
    for file in results.glob(f"{model}.*.torch"):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            theirs[f"{entry['setting']} {file.name.split('.')[2]}"].append(entry["seconds"])
    columns, settings = "", []
    for precision in precisions:
        mine, my_setting = best(ours, precision)
        peer, peer_setting = best(theirs, precision)
        columns += f"{mine:12.1f}{peer:10.1f}{mine / peer:7.2f}"
        settings.append(f"{my_setting} | {peer_setting}")
    print(f"{model:10}{columns}  {'; '.join(settings)}")
PYTHON
