#!/usr/bin/env python3
"""The question of optimizer_bench, put to PyTorch: a step, then the forward's weights three steps ahead.

The straightforward way: optimizer.step(), the weights set aside, w.add_(direction), and the old weights put back.
Prints a line of JSON for each rule and mode: {rule, mode, elements, seconds}, the median of the repetitions.
"""

import argparse
import json
import statistics
import time

import torch

RATE = 1e-6
HORIZON = 3

MAKE = {
    "sgd": lambda p, **mode: torch.optim.SGD(p, lr=RATE, weight_decay=0.01, **mode),
    "sgdm": lambda p, **mode: torch.optim.SGD(p, lr=RATE, momentum=0.9, weight_decay=0.01, **mode),
    "nesterov": lambda p, **mode: torch.optim.SGD(p, lr=RATE, momentum=0.9, nesterov=True, weight_decay=0.01, **mode),
    "adam": lambda p, **mode: torch.optim.Adam(p, lr=RATE, weight_decay=0.01, **mode),
    "adamw": lambda p, **mode: torch.optim.AdamW(p, lr=RATE, weight_decay=0.01, **mode),
    "rmsprop": lambda p, **mode: torch.optim.RMSprop(p, lr=RATE, weight_decay=0.01, **mode),
}
MODES = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def direction(rule, weight, state):
    """What the rule's last step multiplied the learning rate by."""
    if rule == "sgd":
        return weight.grad
    if rule == "sgdm":
        return state["momentum_buffer"]
    if rule == "nesterov":
        return weight.grad.add(state["momentum_buffer"], alpha=0.9)
    if rule == "rmsprop":
        return weight.grad / state["square_avg"].sqrt().add_(1e-8)
    steps = float(state["step"])
    root = (state["exp_avg_sq"] / (1 - 0.999**steps)).sqrt_().add_(1e-8)
    return (state["exp_avg"] / (1 - 0.9**steps)).div_(root)


@torch.no_grad()
def step_and_predict(rule, optimizer, weights):
    optimizer.step()
    aside = [weight.clone() for weight in weights]
    for weight in weights:
        weight.add_(direction(rule, weight, optimizer.state[weight]), alpha=-HORIZON * RATE)
    # Here the forward would read the predicted weights.
    for weight, live in zip(weights, aside):
        weight.copy_(live)


def make_weights(elements, tensors, device):
    weights = [torch.nn.Parameter(torch.randn(elements // tensors, device=device)) for _ in range(tensors)]
    for weight in weights:
        weight.grad = 0.1 * torch.randn_like(weight)
    return weights


def median_seconds(rule, mode, weights, repetitions):
    """None where this version of PyTorch does not have the mode."""
    try:
        optimizer = MAKE[rule](weights, **MODES[mode])
        step_and_predict(rule, optimizer, weights)  # the first step makes the state
    except (TypeError, RuntimeError):
        return None
    wait = torch.cuda.synchronize if weights[0].is_cuda else lambda: None
    times = []
    for _ in range(repetitions):
        wait()
        begin = time.perf_counter()
        step_and_predict(rule, optimizer, weights)
        wait()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="+", choices=MAKE, default=list(MAKE))
    parser.add_argument("--elements", type=int, default=1 << 24)
    parser.add_argument("--tensors", type=int, default=1, help="of equal size, all elements together")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    for rule in options.rules:
        for mode in MODES:
            weights = make_weights(options.elements, options.tensors, options.device)
            seconds = median_seconds(rule, mode, weights, options.repetitions)
            if seconds is not None:
                line = {"rule": rule, "mode": mode, "elements": options.elements, "seconds": seconds}
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
