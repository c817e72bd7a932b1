#!/usr/bin/env python3
"""The question of step_bench's pipeline, put to PyTorch: torch.distributed.pipelining, two stages in two processes.

The models and mini-batches of torch_step.py, through Schedule1F1B (synchronous: every step fills and empties the
pipeline) over gloo, each process with half of --threads. The model is cut where the times of the two stages, measured
layer by layer, are as even as can be. Tries several settings, and prints a line of JSON for each: {model, setting,
seconds}, the median of the steps; the last line of a model names its best. Needs PyTorch 2.5 or later, and ends with 2
where there is an older one.
"""

import argparse
import datetime
import itertools
import json
import os
import statistics
import sys
import tempfile
import time

import torch
from torch import distributed, multiprocessing, nn
from torch.nn import functional

try:
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B, schedules
except ImportError:
    print(f"torch_pipeline.py needs PyTorch 2.5 or later (torch.distributed.pipelining); this is {torch.__version__}",
          file=sys.stderr)
    sys.exit(2)

from torch_step import CHANNELS_LAST, MODELS, MODES, Gpt

STAGES = 2
WARM_UP = 2  # steps
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
NAMES = [name for name in MODELS if name != "lstm"]  # nn.LSTM is one module: there is nothing to cut


def wait_for_all_requests():
    """Before 2.7 the schedules wait for the last request of a batch only.

    NCCL makes one request of a batch; gloo makes one for each transfer, and what nobody waits for blocks both
    processes. Here a batch's handle waits for all.
    """
    if hasattr(schedules, "_wait_batch_p2p"):
        return

    class Requests:
        def __init__(self, requests):
            self.requests = requests

        def wait(self):
            for request in self.requests:
                request.wait()

    def batch(operations, desc=None):  # the description is for logs only
        return Requests(distributed.batch_isend_irecv(operations)) if operations else None

    schedules._batch_p2p = batch


class Embeddings(nn.Module):
    def __init__(self, gpt):
        super().__init__()
        self.wte, self.wpe = gpt.wte, gpt.wpe

    def forward(self, tokens):
        return self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))


class Part(nn.Module):
    """Layers of a stage: transfers are contiguous, whatever the layout inside."""

    def __init__(self, layers, layout):
        super().__init__()
        self.layers, self.layout = nn.Sequential(*layers), layout

    def forward(self, x):
        return self.layers(x.contiguous(memory_format=self.layout) if x.dim() == 4 else x).contiguous()


def make_layers(name, layout):
    torch.manual_seed(0)
    model = MODELS[name][0]().to(memory_format=layout)
    if isinstance(model, Gpt):
        return [Embeddings(model), *model.h, model.ln_f, model.lm_head]
    return list(model)


def loss(logits, labels):
    # The schedule detaches a stage's output in place, which views do not allow: they are flattened here.
    return functional.cross_entropy(logits.flatten(0, -2), labels)


def layer_seconds(layers, batch, micro_batches, rule):
    """Of a step, for each layer: its micro-batches forward and backward, and its update."""
    seconds = []
    x = batch
    for index, layer in enumerate(layers):
        optimizer = rule(layer.parameters()) if list(layer.parameters()) else None
        passes, updates = [], []
        for _ in range(5):
            # Layers that work in place need something that is not a leaf.
            given = x if index == 0 else x.clone().requires_grad_().clone(memory_format=torch.preserve_format)
            begin = time.perf_counter()
            y = layer(given)
            if y.requires_grad:
                y.backward(torch.ones_like(y))
            passes.append(time.perf_counter() - begin)
            if optimizer:
                begin = time.perf_counter()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                updates.append(time.perf_counter() - begin)
        seconds.append(micro_batches * statistics.median(passes) + (statistics.median(updates) if updates else 0))
        x = y.detach()
    return seconds


def even_cut(seconds):
    """Where the slower of two stages is fastest."""
    return min(range(1, len(seconds)), key=lambda cut: max(sum(seconds[:cut]), sum(seconds[cut:])))


def find_cut(name, layout, micro_batches):
    _, make_batch, rule = MODELS[name]
    inputs, _ = make_batch(layout)
    return even_cut(layer_seconds(make_layers(name, layout), inputs.chunk(micro_batches)[0], micro_batches, rule))


def median_seconds(rank, name, layout, mode, micro_batches, cut, steps):
    """None where this version of PyTorch does not have the mode."""
    _, make_batch, rule = MODELS[name]
    layers = make_layers(name, layout)
    parts = [Part(layers[:cut], layout), Part(layers[cut:], layout)]
    inputs, labels = make_batch(layout)
    shapes = [inputs.chunk(micro_batches)[0]]  # of a micro-batch at the ends of the stages
    with torch.no_grad():
        for part in parts:
            shapes.append(part(shapes[-1]))
    part = parts[rank]
    try:
        optimizer = rule(part.parameters(), **MODES[mode])
    except (TypeError, RuntimeError):
        return None
    stage = PipelineStage(part, rank, STAGES, torch.device("cpu"), input_args=(shapes[rank],),
                          output_args=(shapes[rank + 1],))
    schedule = Schedule1F1B(stage, micro_batches, loss_fn=loss)
    times = []
    for _ in range(steps + WARM_UP):
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        if rank == 0:
            schedule.step(inputs)
        else:
            schedule.step(target=labels)
        optimizer.step()
        times.append(time.perf_counter() - begin)
    distributed.barrier()
    return statistics.median(times[WARM_UP:])


def set_up(threads):
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


def work(rank, rendezvous, settings, options):
    set_up(max(1, options.threads // STAGES))
    wait_for_all_requests()
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=STAGES,
                                   timeout=datetime.timedelta(minutes=5))
    best = {}
    for name, layout, mode, micro_batches, cut in settings:
        seconds = median_seconds(rank, name, LAYOUTS[layout], mode, micro_batches, cut, options.steps)
        if rank != 0 or seconds is None:
            continue
        setting = f"{layout} {mode}, {micro_batches} micro-batches, cut {cut}"
        print(json.dumps({"model": name, "setting": setting, "seconds": seconds}), flush=True)
        best[name] = min(best.get(name, (seconds, setting)), (seconds, setting))
    for name, (seconds, setting) in best.items():
        print(json.dumps({"model": name, "best": setting, "seconds": seconds}), flush=True)
    distributed.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--micro-batches", nargs="+", type=int, default=[4], help="that a step's mini-batch makes")
    parser.add_argument("--threads", type=int, default=STAGES, help="of both processes together")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="of the optimizer")
    parser.add_argument("--steps", type=int, default=10, help="measured, for each setting")
    options = parser.parse_args()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    set_up(max(1, options.threads // STAGES))
    settings = []
    for name, layout, micro_batches in itertools.product(options.models, LAYOUTS, options.micro_batches):
        if layout == "nhwc" and name not in CHANNELS_LAST:
            continue
        cut = find_cut(name, LAYOUTS[layout], micro_batches)
        settings += [(name, layout, mode, micro_batches, cut) for mode in options.modes]
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(work, (os.path.join(folder, "rendezvous"), settings, options), nprocs=STAGES)


if __name__ == "__main__":
    main()
