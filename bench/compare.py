#!/usr/bin/env python3
"""Compares two runs of the benchmarks: compare.py BASE NEW, each a JSON file of theirs or a folder of such files.

Prints every counter that is a ratio (per cent of a ceiling: the name ends in %). The end code is 1 where one lost
more than a tenth of its value. Times are not compared: they say more about the machine's other work.
"""

import json
import pathlib
import sys

TOLERANCE = 0.10


def ratios(path):
    """Maps (benchmark, counter) to its value."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    found = {}
    for file in files:
        if file.stat().st_size == 0:  # of a program whose benchmarks were all filtered out
            continue
        for benchmark in json.loads(file.read_text())["benchmarks"]:
            for counter, value in benchmark.items():
                if counter.endswith("%"):
                    found[benchmark["name"].split("/iterations:")[0], counter] = value
    return found


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: compare.py BASE NEW")
    base, new = (ratios(pathlib.Path(argument)) for argument in sys.argv[1:])
    common = [key for key in base if key in new]
    if not common:
        sys.exit("compare.py: the two have no ratio in common")
    losses = 0
    print(f"{'benchmark':44}{'counter':>10}{'base':>8}{'new':>8}{'change':>9}")
    for key in common:
        change = new[key] / base[key] - 1
        lost = change < -TOLERANCE
        losses += lost
        print(f"{key[0]:44}{key[1]:>10}{base[key]:8.1f}{new[key]:8.1f}{change:+9.1%}{'  LOST' if lost else ''}")
    print(f"{losses} of {len(common)} ratios lost more than {TOLERANCE:.0%}")
    return 1 if losses else 0


if __name__ == "__main__":
    sys.exit(main())
