#!/usr/bin/env bash
# How far is `pipeoptim simulate` from a run whose costs it is given? simulation.sh [PROGRAM] prints, for some models and
# schedules, simulated over measured time. It needs a quiet machine with a core for each stage: a run that waits for
# cores waits longer than its costs say.
set -euo pipefail
program=${1:-$(dirname "$(readlink -f "$0")")/../build/host/pipeoptim}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export OMP_WAIT_POLICY=passive

ratio() { # ratio model stages method micro-batches steps
  local run=(--stages "$2" --method "$3" --micro-batches "$4") trace=$folder/$1-$2-$3.json
  "$program" train --quiet --model "$1" --data fashion-mnist "${run[@]}" --steps "$5" --lr 0.001 --limit-test 500 \
    --threads 2 --trace "$trace" >/dev/null
  "$program" simulate "${run[@]}" --costs-from "$trace" --json | python3 -c "
import json, sys
run = json.load(sys.stdin)
print('%-10s %-10s D = %s, m = %s: %.3f' % ('$1', '$3', '$2', '$4', run['time'] / run['measured_time']))"
  rm "$trace"
}

for model in cnn resnet20; do
  ratio "$model" 2 pipeoptim 1 40
  for method in gpipe 1f1b zb-h1; do ratio "$model" 2 "$method" 4 30; done
done
