#!/usr/bin/env python3
"""The question of step_bench, put to PyTorch: a training step of the same model on the same batch.

Forward, backward and optimizer step in one process with --threads threads, over the same random mini-batch again and
again. Tries several settings, and prints a line of JSON for each: {model, setting, seconds}, the median of the steps.
"""

import argparse
import itertools
import json
import statistics
import time

import torch
from torch import nn
from torch.nn import functional

RECORDS = 128


class BasicBlock(nn.Module):
    def __init__(self, channels_in, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        return functional.relu(self.bn2(self.conv2(x)) + shortcut, inplace=True)


def resnet20():
    layers = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    before = 16
    for group, channels in enumerate((16, 32, 64)):
        for block in range(3):
            layers.append(BasicBlock(before, channels, 2 if group > 0 and block == 0 else 1))
            before = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def vgg16():
    layers, before = [], 3
    for channels in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        if channels == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(before, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        before = channels
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(),
                         nn.Linear(1024, 10))


def adamw(parameters, foreach):
    return torch.optim.AdamW(parameters, lr=1e-4, foreach=foreach)


def sgdm(parameters, foreach):
    return torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, foreach=foreach)


MODELS = {
    "mlp": (mlp, (RECORDS, 1, 28, 28), adamw),
    "resnet20": (resnet20, (RECORDS, 3, 32, 32), sgdm),
    "vgg16": (vgg16, (RECORDS, 3, 32, 32), sgdm),
}


def median_seconds(name, layout, foreach, precision, steps):
    make, shape, rule = MODELS[name]
    torch.manual_seed(0)
    model = make().to(memory_format=layout)
    optimizer = rule(model.parameters(), foreach)
    inputs = torch.randn(shape).to(memory_format=layout)
    labels = torch.arange(shape[0]) % 10
    times = []
    for _ in range(steps + 2):  # two warm up
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[2:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=10, help="measured, for each setting")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    layouts = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
    for name in options.models:
        images = name != "mlp"
        for layout, foreach, precision in itertools.product(layouts, (False, True), ("fp32", "bf16")):
            if layout == "nhwc" and not images:
                continue
            setting = f"{precision} {layout} {'foreach' if foreach else 'for-loop'}"
            seconds = median_seconds(name, layouts[layout], foreach, precision, options.steps)
            print(json.dumps({"model": name, "setting": setting, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
