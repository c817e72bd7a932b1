#!/usr/bin/env python3
"""Makes the golden files of this folder with PyTorch (Debian: python3-torch; made with 1.13.1).

  /usr/bin/python3 tests/golden/make.py [folder of Fashion-MNIST]

mlp.safetensors, cnn.safetensors   initial weights (float32, PyTorch's names and layouts)
mlp.json, cnn.json                 loss of 20 sequential steps for SGDM, Adam and AdamW from these weights, on
                                   the records 0..20*32-1 of Fashion-MNIST's training file in file order:
                                   "loss64" computed in double precision (the reference), "loss32" in single
                                   (how far rounding alone goes)
gpt.safetensors, lstm.safetensors, gpt.json, lstm.json
                                   the same for the models on texts, with their random tokens ("tokens", "labels")
types.safetensors                  one tensor of every element type that the reader converts

Weight decay is on weights only, not on biases and norms.
"""

import gzip
import json
import math
import pathlib
import struct
import sys

import torch
from torch import nn

HERE = pathlib.Path(__file__).resolve().parent
BATCH, STEPS = 32, 20
MLP_HIDDEN = [32, 24]
CNN_WIDTH = 4  # the zoo's option `width`; the full network has 16

# eps is larger than usual: with 1e-8 Adam turns a gradient that is zero but for rounding into a full step.
RUNS = [
    dict(optimizer="sgdm", lr=0.01, momentum=0.9, weight_decay=5e-4),
    dict(optimizer="adam", lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-6, weight_decay=0.0),
    dict(optimizer="adamw", lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-6, weight_decay=0.01),
]


def write_safetensors(path, tensors):
    names = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16",
             torch.int64: "I64"}
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        raw = raw_bytes(tensor)
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def raw_bytes(tensor):
    if tensor.dtype == torch.bfloat16:  # numpy has none; the bits are the upper half of a float's
        bits = tensor.reshape(-1).view(torch.int16)
        return bits.numpy().astype("<i2").tobytes()
    return tensor.numpy().tobytes()


def records(folder, count):
    with gzip.open(folder / "train-images-idx3-ubyte.gz") as file:
        pixels = file.read(16 + count * 784)[16:]
    with gzip.open(folder / "train-labels-idx1-ubyte.gz") as file:
        labels = file.read(8 + count)[8:]
    images = torch.tensor(list(pixels), dtype=torch.float64).reshape(count, 1, 28, 28)
    return (images / 255 - 0.2860) / 0.3530, torch.tensor(list(labels))


def mlp():
    layers, width = [], 784
    for hidden in MLP_HIDDEN:
        layers += [nn.Linear(width, hidden), nn.ReLU()]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, 10))


class Cnn(nn.Module):
    """The zoo's `cnn` (models/zoo.h)."""

    def __init__(self, w):
        super().__init__()
        self.conv1 = nn.Conv2d(1, w, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(w)
        self.conv2 = nn.Conv2d(w, 2 * w, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * w)
        self.conv3 = nn.Conv2d(2 * w, 2 * w, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * w)
        self.pool = nn.MaxPool2d(2)
        self.conv4 = nn.Conv2d(2 * w, 4 * w, 3, padding=1, bias=False)
        self.bn4 = nn.BatchNorm2d(4 * w)
        self.conv5 = nn.Conv2d(4 * w, 4 * w, 3, padding=1, bias=False)
        self.bn5 = nn.BatchNorm2d(4 * w)
        self.fc1 = nn.Linear(4 * w * 7 * 7, 8 * w)
        self.fc2 = nn.Linear(8 * w, 10)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        x = self.pool(self.bn3(self.conv3(x)).relu())
        x = self.bn4(self.conv4(x)).relu()
        x = self.bn5(self.conv5(x)).relu()
        return self.fc2(self.fc1(x.flatten(1)).relu())


class Attention(nn.Module):
    def __init__(self, features, heads):
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(features, 3 * features)
        self.c_proj = nn.Linear(features, features)

    def forward(self, x):
        n, t, f = x.shape
        q, k, v = (part.view(n, t, self.heads, -1).transpose(1, 2) for part in self.c_attn(x).split(f, dim=2))
        scores = q @ k.transpose(2, 3) / math.sqrt(f // self.heads)
        hidden = torch.ones(t, t, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(hidden, float("-inf")).softmax(dim=3) @ v
        return self.c_proj(mixed.transpose(1, 2).reshape(n, t, f))


class Mlp(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.c_fc = nn.Linear(features, 4 * features)
        self.c_proj = nn.Linear(4 * features, features)

    def forward(self, x):
        return self.c_proj(nn.functional.gelu(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, features, heads):
        super().__init__()
        self.ln_1 = nn.LayerNorm(features)
        self.attn = Attention(features, heads)
        self.ln_2 = nn.LayerNorm(features)
        self.mlp = Mlp(features)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Gpt(nn.Module):
    """The zoo's `gpt`."""

    def __init__(self, layers, features, heads, sequence_length, vocabulary):
        super().__init__()
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(vocabulary, features), wpe=nn.Embedding(sequence_length, features),
            h=nn.ModuleList(Block(features, heads) for _ in range(layers)), ln_f=nn.LayerNorm(features)))
        self.lm_head = nn.Linear(features, vocabulary, bias=False)

    def forward(self, tokens):
        x = self.transformer.wte(tokens) + self.transformer.wpe.weight
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))


class Lstm(nn.Module):
    """The zoo's `lstm`."""

    def __init__(self, layers, features, vocabulary, classes):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, features)
        self.lstm = nn.ModuleList(nn.LSTM(features, features, batch_first=True) for _ in range(layers))
        self.fc = nn.Linear(features, classes)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.lstm:
            x, _ = layer(x)
        return self.fc(x[:, -1])


def optimizer(model, run):
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [dict(params=decayed, weight_decay=run["weight_decay"]), dict(params=others, weight_decay=0.0)]
    if run["optimizer"] == "sgdm":
        return torch.optim.SGD(groups, lr=run["lr"], momentum=run["momentum"])
    kind = torch.optim.Adam if run["optimizer"] == "adam" else torch.optim.AdamW
    return kind(groups, lr=run["lr"], betas=(run["beta1"], run["beta2"]), eps=run["eps"])


def losses(model, initial, run, images, labels, dtype, batch=BATCH):
    model.load_state_dict(initial)
    model.to(dtype).train()
    steps, out = optimizer(model, run), []
    for t in range(STEPS):
        part = slice(t * batch, (t + 1) * batch)
        x = images[part] if images.dtype == torch.int64 else images[part].to(dtype)
        logits = model(x.flatten(1) if isinstance(model, nn.Sequential) else x)
        loss = nn.functional.cross_entropy(logits.flatten(0, -2), labels[part].flatten())
        steps.zero_grad()
        loss.backward()
        steps.step()
        out.append(float(loss))
    return out


def make_texts():
    torch.set_num_threads(1)
    torch.manual_seed(2)
    batch, length, vocabulary, classes = 4, 12, 11, 3
    gpt = dict(layers=2, features=16, heads=2, sequence_length=length, vocabulary=vocabulary)
    lstm = dict(layers=2, features=12, vocabulary=vocabulary, classes=classes)
    for name, model, options in [("gpt", Gpt(**gpt), gpt), ("lstm", Lstm(**lstm), lstm)]:
        text = torch.randint(vocabulary, (STEPS * batch, length + 1))
        tokens, labels = text[:, :-1], text[:, 1:] if name == "gpt" else text[:, -1] % classes
        initial = {key: value.clone() for key, value in model.state_dict().items()}
        write_safetensors(HERE / f"{name}.safetensors", initial)
        runs = []
        for run in RUNS:
            both = [losses(model, initial, run, tokens, labels, dtype, batch)
                    for dtype in (torch.float64, torch.float32)]
            runs.append(dict(run, loss64=both[0], loss32=both[1]))
        golden = dict(model=name, options=dict(options, sequence_length=length), batch=batch, steps=STEPS,
                      decay="weights only", torch=torch.__version__, runs=runs)
        text = json.dumps(golden, indent=1)[:-2]
        for key, value in dict(tokens=tokens, labels=labels).items():
            text += f',\n "{key}": {json.dumps(value.flatten().tolist())}'
        (HERE / f"{name}.json").write_text(text + "\n}\n")


def main():
    make_texts()
    torch.set_num_threads(1)
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/datasets/fashion-mnist")
    images, labels = records(folder, STEPS * BATCH)
    torch.manual_seed(1)
    models = {"mlp": (mlp(), dict(hidden=MLP_HIDDEN)), "cnn": (Cnn(CNN_WIDTH), dict(width=CNN_WIDTH))}
    for name, (model, options) in models.items():
        initial = {key: value.clone() for key, value in model.state_dict().items()}
        write_safetensors(HERE / f"{name}.safetensors",
                          {key: value for key, value in initial.items() if "num_batches" not in key})
        runs = []
        for run in RUNS:
            runs.append(dict(run, loss64=losses(model, initial, run, images, labels, torch.float64),
                             loss32=losses(model, initial, run, images, labels, torch.float32)))
        golden = dict(model=name, options=options, data="fashion-mnist", split="train", batch=BATCH,
                      steps=STEPS, decay="weights only", torch=torch.__version__, runs=runs)
        (HERE / f"{name}.json").write_text(json.dumps(golden, indent=1) + "\n")
    values = torch.arange(-4, 8, dtype=torch.float64).reshape(3, 4) * 0.375
    write_safetensors(HERE / "types.safetensors", {
        "f64": values, "f32": values.float(), "f16": values.half(), "bf16": values.bfloat16(),
        "i64": torch.arange(-3, 3).reshape(2, 3), "scalar": torch.tensor(2.5)})


if __name__ == "__main__":
    main()
