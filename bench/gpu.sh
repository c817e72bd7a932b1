#!/usr/bin/env bash
# Everything that wants a GPU, in one call: builds for this card, tests, the card's own checks, a training, benchmarks,
# PyTorch. gpu.sh [RESULTS]; RESULTS is bench/results/CARD unless given. A step that fails does not stop the others;
# the end code is 1 then, and RESULTS/STEP.log says why. PYTHON names an interpreter that has PyTorch.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

if ! command -v nvcc >/dev/null && [ -x /usr/local/cuda/bin/nvcc ]; then export PATH="$PATH:/usr/local/cuda/bin"; fi
for program in nvidia-smi ctest python3 ${BUILD:-nvcc cmake ninja}; do
  [ -d "$program" ] && continue
  if ! command -v "$program" >/dev/null; then
    echo "gpu.sh: $program was not found" >&2
    exit 2
  fi
done
query() { nvidia-smi --id=0 --query-gpu="$1" --format=csv,noheader; }
card=$(query name)
architecture=$(query compute_cap | tr -d .)
results=${1:-bench/results/$(tr -c '[:alnum:]\n' - <<<"$card" | tr -s -)}
mkdir -p "$results"
build=${BUILD:-build/gpu}
jobs=$(nproc)
failed=()

step() { # step name command...
  local name=$1 begin=$SECONDS end=ok
  shift
  "$@" >"$results/$name.log" 2>&1 || { end=FAILED && failed+=("$name"); }
  printf '%-20s %s after %d s\n' "$name" "$end" $((SECONDS - begin)) | tee -a "$results/steps.txt"
}

build_all() {
  cmake/cudnn_frontend.sh
  cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DPIPEOPTIM_CUDA=ON -DPIPEOPTIM_BENCH=ON \
    -DCMAKE_CUDA_ARCHITECTURES="$architecture"
  cmake --build "$build"
}

tests() { # tests label
  ctest --test-dir "$build" -L "^$1\$" -j "$2" --output-on-failure --no-tests=error
}

train() {
  "$build/pipeoptim" train --model cnn --data fashion-mnist --stages 4 --method pipeoptim --optimizer adamw \
    --device cuda --epochs 2
}

benchmark() { # benchmark name program [options...]
  PIPEOPTIM_BENCH_DEVICE=cuda "$build/bench/$2_bench" --benchmark_out="$results/$1.json" "${@:3}"
}

training_step() { # training_step precision
  PIPEOPTIM_BENCH_PRECISION=$1 benchmark "step-$1" step || return
  PIPEOPTIM_BENCH_PRECISION=$1 PIPEOPTIM_BENCH_CUDA_GRAPH=1 benchmark "step-$1-graph" step
}

# Batch norm and pooling by cuDNN.
row_kernels() {
  local PIPEOPTIM_BENCH_ROW_KERNELS=cudnn
  export PIPEOPTIM_BENCH_ROW_KERNELS
  benchmark layers-cudnn layers --benchmark_filter='batch_norm|pool' || return
  local precision
  for precision in tf32 bf16; do
    PIPEOPTIM_BENCH_PRECISION=$precision PIPEOPTIM_BENCH_CUDA_GRAPH=1 benchmark "step-$precision-graph-cudnn" step \
      --benchmark_filter=resnet20 || return
  done
}

pytorch_optimizer() {
  "${PYTHON:-python3}" bench/peers/torch_optimizer.py --device cuda --elements $((1 << 26)) >"$results/pytorch.jsonl"
}

pytorch_step() {
  "${PYTHON:-python3}" bench/peers/torch_step.py --device cuda --precisions fp32 tf32 bf16 --modes fused --steps 3 \
    >"$results/pytorch-step.jsonl"
}

report() {
  python3 - "$results" "$card, driver $(query driver_version), $(date +%F), $(git describe --always --dirty)" <<'PYTHON'
import json, pathlib, sys

results, title = pathlib.Path(sys.argv[1]), sys.argv[2]
lines = [f"# {title}", "", "```", (results / "steps.txt").read_text().rstrip(), "```", ""]
for file in sorted(results.glob("*.json")):
    try:
        benchmarks = json.loads(file.read_text())["benchmarks"]
    except ValueError:  # its program was cut off
        continue
    lines += [f"| {file.stem} | counters | |", "|---|---|---|"]
    for benchmark in benchmarks:
        known = {"real_time", "cpu_time", "iterations", "repetitions", "repetition_index", "threads", "family_index",
                 "per_family_instance_index"}
        counters = [f"{name} {value:.4g}" for name, value in benchmark.items()
                    if isinstance(value, (int, float)) and name not in known]
        said = benchmark.get("error_message", benchmark.get("label", ""))
        lines.append(f"| {benchmark['name'].split('/iterations')[0]} | {', '.join(counters)} | {said} |")
    lines.append("")
for name, header, row in (
    ("pytorch", "| PyTorch: step, then prediction | mode | elements | seconds |", "| {rule} | {mode} | {elements} | {seconds:.3g} |"),
    ("pytorch-step", "| PyTorch: training step | setting | seconds |", "| {model} | {setting} | {seconds:.3g} |"),
):
    file = results / f"{name}.jsonl"
    if file.exists() and file.stat().st_size:
        lines += [header, "|---" * (header.count("|") - 1) + "|"]
        lines += [row.format(**json.loads(line)) for line in file.read_text().splitlines()] + [""]
(results / "README.md").write_text("\n".join(lines).rstrip() + "\n")
PYTHON
}

: >"$results/steps.txt"
echo "$card (sm_$architecture), results in $results"
[ -n "${BUILD:-}" ] || step build build_all
step tests-cuda tests cuda "$jobs"
step train train
step optimizer benchmark optimizer optimizer
step layers benchmark layers layers
step runtime benchmark runtime runtime
step channels benchmark channels channels
for precision in fp32 tf32 bf16; do step "step-$precision" training_step "$precision"; done
step row-kernels row_kernels
step pytorch-optimizer pytorch_optimizer
step pytorch-step pytorch_step
step tests-gpu tests gpu 6
if [ "$(nvidia-smi --list-gpus | wc -l)" -ge 4 ]; then step tests-nccl tests nccl 1; fi
report
if [ ${#failed[@]} -gt 0 ]; then
  echo "gpu.sh: failed: ${failed[*]}; see the logs in $results" >&2
  exit 1
fi
