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


class Block(nn.Module):
    """GPT-2's, with causal self-attention written out: this is what nanoGPT does without a fused kernel."""

    def __init__(self, features, heads, length):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(features), nn.LayerNorm(features)
        self.c_attn, self.c_proj = nn.Linear(features, 3 * features), nn.Linear(features, features)
        self.mlp = nn.Sequential(nn.Linear(features, 4 * features), nn.GELU(), nn.Linear(4 * features, features))
        self.register_buffer("hidden", torch.ones(length, length, dtype=torch.bool).triu(1))

    def attend(self, x):
        records, length, features = x.shape
        shape = (records, length, self.heads, features // self.heads)
        q, k, v = (part.view(shape).transpose(1, 2) for part in self.c_attn(x).split(features, dim=2))
        scores = (q @ k.transpose(-2, -1)) * (features // self.heads) ** -0.5
        y = functional.softmax(scores.masked_fill(self.hidden, float("-inf")), dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).reshape(records, length, features))

    def forward(self, x):
        x = x + self.attend(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Gpt(nn.Module):
    def __init__(self, vocabulary=65, features=256, heads=8, layers=4, length=128):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, features), nn.Embedding(length, features)
        self.h = nn.Sequential(*(Block(features, heads, length) for _ in range(layers)))
        self.ln_f, self.lm_head = nn.LayerNorm(features), nn.Linear(features, vocabulary, bias=False)

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        return self.lm_head(self.ln_f(self.h(x))).flatten(0, 1)


class Lstm(nn.Module):
    def __init__(self, vocabulary=20000, features=512, layers=4):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, features)
        self.lstm = nn.LSTM(features, features, layers, batch_first=True)
        self.fc = nn.Linear(features, 2)

    def forward(self, tokens):
        return self.fc(self.lstm(self.embedding(tokens))[0][:, -1])


def images(shape, layout):
    return torch.randn(shape).to(memory_format=layout), torch.arange(shape[0]) % 10


def tokens(records, length, vocabulary):
    return (torch.arange(records * length) * 7919 % vocabulary).view(records, length)


def adamw(parameters, **mode):
    return torch.optim.AdamW(parameters, lr=1e-4, **mode)


def sgdm(parameters, **mode):
    return torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, **mode)


# How to make the model and a batch of the layout, and its optimizer.
MODELS = {
    "mlp": (mlp, lambda layout: images((RECORDS, 1, 28, 28), layout), adamw),
    "resnet20": (resnet20, lambda layout: images((RECORDS, 3, 32, 32), layout), sgdm),
    "vgg16": (vgg16, lambda layout: images((RECORDS, 3, 32, 32), layout), sgdm),
    "gpt": (Gpt, lambda layout: (tokens(16, 128, 65), torch.arange(16 * 128) % 65), adamw),
    "lstm": (Lstm, lambda layout: (tokens(32, 64, 20000), torch.arange(32) % 2), adamw),
}
CHANNELS_LAST = ("resnet20", "vgg16")
MODES = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def median_seconds(name, device, layout, mode, precision, steps):
    """None where this version of PyTorch does not have the mode."""
    make, make_batch, rule = MODELS[name]
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"
    model = make().to(device, memory_format=layout)
    try:
        optimizer = rule(model.parameters(), **MODES[mode])
    except (TypeError, RuntimeError):
        return None
    inputs, labels = (values.to(device) for values in make_batch(layout))

    def one_step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()

    # A device is given several steps at a time, so that it does not wait for the host to ask the time.
    several = 20 if device == "cuda" else 1
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = []
    for _ in range(steps + 2):  # two warm up
        wait()
        begin = time.perf_counter()
        for _ in range(several):
            one_step()
        wait()
        times.append((time.perf_counter() - begin) / several)
    return statistics.median(times[2:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "tf32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["for-loop", "foreach"], help="of the optimizer")
    parser.add_argument("--steps", type=int, default=10, help="measured, for each setting (cuda: 20 times as many)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    layouts = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
    for name in options.models:
        for layout, mode, precision in itertools.product(layouts, options.modes, options.precisions):
            if layout == "nhwc" and name not in CHANNELS_LAST:
                continue
            seconds = median_seconds(name, options.device, layouts[layout], mode, precision, options.steps)
            if seconds is None:
                continue
            setting = f"{precision} {layout} {mode}"
            print(json.dumps({"model": name, "setting": setting, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
