#!/usr/bin/env bash
# The study of docs/study.md: every run of one setting. report.py makes its tables and curves.
#   run.sh PROGRAM CIFAR10_DIR RESULTS DATA OPTIMIZER    DATA: fashion-mnist, cifar10; OPTIMIZER: sgdm, adam, adamw
# One setting takes up to half an hour on a core. Settings may run side by side: no time is taken from them.
set -euo pipefail
if [ $# -ne 5 ]; then
  sed -n '2,4s/^# //p' "$0" >&2
  exit 2
fi
program=$1 cifar=$2 results=$3 data=$4 optimizer=$5

# Learning rates: of a grid with factors of 2 to 2.5, the smallest within half a point of the best, for sequential training, seed 0.
rivals="naive pipedream pipedream-2bw+micro-batches=DEPTH spectrain pipemare"
ours="pipeoptim pipeoptim+geometric"
case "$data" in
  fashion-mnist)
    training=(--model mlp --hidden "128,128,128,128,128,128,128" --data fashion-mnist --epochs 5 --warmup-steps 117)
    case "$optimizer" in sgdm) lr=0.02 ;; *) lr=0.002 ;; esac
    rivals+=" naive+micro-batches=DEPTH"
    ours+=" pipeoptim+paper pipeoptim+micro-batches=DEPTH"
    if [ "$optimizer" != adam ]; then
      rivals+=" pipedream-vertical"
      ours+=" pipeoptim+released-code pipeoptim+schedule-aware pipeoptim+difference"
    fi
    if [ "$optimizer" = sgdm ]; then rivals+=" spike-compensation"; fi
    ;;
  cifar10)
    training=(--model cnn --width 8 --data cifar10 --data-dir "$cifar" --epochs 3 --warmup-steps 58)
    case "$optimizer" in sgdm) lr=0.05 ;; *) lr=0.004 ;; esac
    if [ "$optimizer" = sgdm ]; then ours+=" pipeoptim+paper pipeoptim+micro-batches=DEPTH"; fi
    if [ "$optimizer" = adam ]; then rivals="pipedream pipedream-2bw+micro-batches=DEPTH spectrain"; fi
    ;;
  *)
    echo "run.sh: unknown data '$data': fashion-mnist or cifar10" >&2
    exit 2
    ;;
esac
case "$optimizer" in
  sgdm) rivals+=" lwp-sc" ;;
  adamw) training+=(--weight-decay 0.01) ;;
  adam) rivals+=" async-nag" ;; # its NAdam would add a decay to the gradient
  *)
    echo "run.sh: unknown optimizer '$optimizer': sgdm, adam or adamw" >&2
    exit 2
    ;;
esac

methods=sequential
for depth in 4 8; do
  for method in $rivals $ours; do methods+=,${method//DEPTH/$depth}+stages=$depth; done
done
OMP_WAIT_POLICY=passive exec "$program" compare --methods "$methods" --seeds 3 "${training[@]}" --lr "$lr" \
  --lr-schedule cosine --optimizer "$optimizer" --threads 1 --stages 1 --run-dir "$results/$data-$optimizer"
