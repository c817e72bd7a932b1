#!/usr/bin/env python3
"""Makes the tables and the curves of docs/study.md: report.py RESULTS DATA FIGURE.svg

RESULTS holds the folders DATA-OPTIMIZER that run.sh leaves. The tables go to standard output, as Markdown; beside each
folder DATA-OPTIMIZER.csv gets one line a run.
"""

import csv
import json
import pathlib
import re
import statistics
import sys

OPTIMIZERS = ["sgdm", "adam", "adamw"]
DEPTHS = [4, 8]
# The curves that are shown, each with its colour.
SHOWN = {
    "sequential": "#000000",
    "naive": "#999999",
    "pipedream": "#0072b2",
    "pipedream-2bw, m = D": "#56b4e9",
    "spectrain": "#e69f00",
    "pipemare": "#cc79a7",
    "pipeoptim": "#d55e00",
    "pipeoptim, geometric": "#009e73",
    "pipeoptim, m = D": "#8b4513",
}
WIDTH, HEIGHT, MARGIN = 300, 190, 34  # of a panel


def read(results, data):
    """Maps (optimizer, method, depth) to that contender of a comparison."""
    found = {}
    for optimizer in OPTIMIZERS:
        file = results / f"{data}-{optimizer}" / "comparison.json"
        if not file.exists():
            continue
        for contender in json.loads(file.read_text())["methods"]:
            parts = contender["method"].split("+")
            depths = [int(part[7:]) for part in parts if part.startswith("stages=")] or DEPTHS
            kept = [part for part in parts if not part.startswith(("stages=", "micro-batches="))]
            name = ", ".join(kept) + (", m = D" if len(kept) + 1 < len(parts) else "")
            for depth in depths:
                found[optimizer, name, depth] = contender
    return found


def smoothed(losses):
    """The mean of the last fiftieth of the steps, up to each step: as `pipeoptim compare` has it."""
    window = max(1, len(losses) // 50)
    total, means = 0.0, []
    for step, loss in enumerate(losses):
        total += loss - (losses[step - window] if step >= window else 0)
        means.append(total / min(step + 1, window))
    return means


def cell(contender, values):
    """Mean and deviation of what the runs of a contender came to, and how many diverged."""
    if contender is None or not contender["runs"] + contender["diverged"]:
        return ""
    diverged = len(contender["diverged"])
    if not contender["runs"]:
        return "diverged"
    numbers = [values(run) for run in contender["runs"]]
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else 0
    text = f"{statistics.mean(numbers):.2f} ± {deviation:.2f}"
    return text + (f" ({diverged} diverged)" if diverged else "")


def accuracy(run):
    return run["evaluations"][-1]["accuracy"]


def final_loss(run):
    return smoothed(run["losses"])[-1]


def write_runs(results, data):
    for optimizer in OPTIMIZERS:
        source = results / f"{data}-{optimizer}" / "comparison.json"
        if not source.exists():
            continue
        with open(results / f"{data}-{optimizer}.csv", "w", encoding="utf-8") as file:
            lines = csv.writer(file, lineterminator="\n")
            lines.writerow(["method", "seed", "test_accuracy", "test_loss", "final_training_loss"])
            for contender in json.loads(source.read_text())["methods"]:
                for run in contender["runs"]:
                    loss = run["evaluations"][-1]["loss"]
                    lines.writerow([contender["method"], run["seed"], f"{accuracy(run):.4f}", f"{loss:.4f}",
                                    f"{final_loss(run):.4f}"])
                for run in contender["diverged"]:
                    lines.writerow([contender["method"], run["seed"], "diverged", "", ""])


def table(found, values):
    columns = [(optimizer, depth) for optimizer in OPTIMIZERS for depth in DEPTHS
               if (optimizer, "sequential", depth) in found]
    print("| method | " + " | ".join(f"{optimizer}, D = {depth}" for optimizer, depth in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name in dict.fromkeys(name for _, name, _ in found):
        cells = [cell(found.get((optimizer, name, depth)), values) for optimizer, depth in columns]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print()


def mean_curve(contender):
    """The smoothed training loss, mean over the seeds, at 100 steps."""
    curves = [smoothed(run["losses"]) for run in contender["runs"]]
    length = min(len(curve) for curve in curves)
    steps = [round(i * (length - 1) / 99) for i in range(100)]
    return [(step, statistics.mean(curve[step] for curve in curves)) for step in steps]


def panel(found, optimizer, depth, left, top):
    curves = {name: mean_curve(found[optimizer, name, depth]) for name in SHOWN
              if found.get((optimizer, name, depth), {}).get("runs")}
    last = max(step for curve in curves.values() for step, _ in curve)
    # Curves that went astray leave the panel above.
    high = 1.15 * max(loss for _, loss in curves["sequential"])
    low = 0.9 * min(loss for curve in curves.values() for _, loss in curve)
    x = lambda step: left + MARGIN + (WIDTH - MARGIN - 8) * step / last
    y = lambda loss: top + 22 + (HEIGHT - 22 - 24) * (1 - (min(loss, high) - low) / (high - low))
    yield f'<text x="{left + MARGIN}" y="{top + 14}" font-weight="bold">{optimizer}, D = {depth}</text>'
    for i in range(4):
        loss = low + (high - low) * i / 3
        yield (f'<line x1="{x(0):.0f}" x2="{x(last):.0f}" y1="{y(loss):.1f}" y2="{y(loss):.1f}" stroke="#dddddd"/>'
               f'<text x="{x(0) - 4:.0f}" y="{y(loss) + 4:.1f}" text-anchor="end">{loss:.2f}</text>')
    yield f'<text x="{x(last):.0f}" y="{top + HEIGHT - 8}" text-anchor="end">step {last + 1}</text>'
    for name, curve in curves.items():
        points = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in curve)
        yield f'<polyline fill="none" stroke="{SHOWN[name]}" stroke-width="1.3" points="{points}"/>'


def figure(found):
    optimizers = [optimizer for optimizer in OPTIMIZERS if (optimizer, "sequential", 4) in found]
    width, height = WIDTH * len(optimizers), HEIGHT * len(DEPTHS) + 24
    yield (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
           f'font-size="10"><rect width="{width}" height="{height}" fill="#ffffff"/>')
    for row, depth in enumerate(DEPTHS):
        for column, optimizer in enumerate(optimizers):
            yield from panel(found, optimizer, depth, WIDTH * column, HEIGHT * row)
    left = 10
    for name, colour in SHOWN.items():
        yield (f'<line x1="{left:.0f}" x2="{left + 14:.0f}" y1="{height - 12}" y2="{height - 12}" stroke="{colour}" '
               f'stroke-width="2"/><text x="{left + 17:.0f}" y="{height - 8}">{name}</text>')
        left += 34 + 5.2 * len(name)  # about the width of the text
    yield "</svg>"


def main():
    if len(sys.argv) != 4:
        sys.exit(re.sub(r"\n.*", "", __doc__, flags=re.S))
    results, data, svg = pathlib.Path(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
    found = read(results, data)
    if not found:
        sys.exit(f"report.py: there is no {data}-OPTIMIZER/comparison.json in {results}")
    print("Test accuracy in per cent, mean and deviation over the seeds:\n")
    table(found, lambda run: 100 * accuracy(run))
    print("Training loss at the end:\n")
    table(found, final_loss)
    write_runs(results, data)
    svg.write_text("\n".join(figure(found)) + "\n")


if __name__ == "__main__":
    main()
