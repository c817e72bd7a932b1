#!/usr/bin/env python3
"""Registers, shared memory, stack and spills of every kernel, from ptxas; fails on a stack or a spill.

usage: bench/kernels.py BUILD [ARCHITECTURE]     BUILD: a build folder with CUDA; ARCHITECTURE: 80, 90 (default) or 100
Compiles each .cu file of the build once more, for that architecture only. Nothing in BUILD changes."""
import collections, concurrent.futures, json, os, pathlib, re, shlex, subprocess, sys

Kernel = collections.namedtuple("Kernel", "file name registers shared stack spilled")


def compile_command(entry, architecture):
    words = [w for w in shlex.split(entry["command"]) if "ccache" not in w and not w.startswith("--generate-code")]
    words = words[: words.index("-x")]  # what follows names the files
    for option in ("-MT", "-MF"):
        if option in words:
            at = words.index(option)
            del words[at : at + 2]
    words = [w for w in words if w != "-MD"]
    target = f"arch=compute_{architecture},code=sm_{architecture}"
    return words + ["-gencode", target, "-Xptxas=-v", "-x", "cu", "-c", entry["file"], "-o", os.devnull]


def kernels_of(entry, architecture):
    done = subprocess.run(compile_command(entry, architecture), cwd=entry["directory"], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"{entry['file']}: {done.stdout}")
    found = []
    for part in done.stdout.split("Compiling entry function '")[1:]:
        number = lambda pattern: int((re.search(pattern, part) or [0, 0])[1])
        found.append(Kernel(pathlib.Path(entry["file"]).name, part[: part.index("'")], number(r"Used (\d+) registers"),
                            number(r"(\d+) bytes smem"), number(r"(\d+) bytes stack frame"),
                            number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")))
    return found


def readable(names):
    lines = subprocess.run(["c++filt"], input="\n".join(names), text=True, stdout=subprocess.PIPE, check=True).stdout
    for noise in (r"pipeoptim::", r"\(anonymous namespace\)::", r"void cuda::", r"\(long, .*$", r"\(Activation\)"):
        lines = re.sub(noise, "", lines, flags=re.M)
    return lines.splitlines()


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    build, architecture = pathlib.Path(sys.argv[1]), sys.argv[2] if len(sys.argv) == 3 else "90"
    root = pathlib.Path(__file__).resolve().parent.parent
    entries = [e for e in json.loads((build / "compile_commands.json").read_text())
               if e["file"].endswith(".cu") and not re.search(r"/(tests|examples|bench)/", e["file"][len(str(root)):])]
    if not any("nvcc" in e["command"] for e in entries):
        sys.exit(f"{build} is no build with CUDA")
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        kernels = [k for found in pool.map(lambda e: kernels_of(e, architecture), entries) for k in found]
    print(f"| file | kernel (sm_{architecture}) | registers | shared bytes | stack bytes | spilled bytes |\n|---|---|---|---|---|---|")
    for kernel, name in sorted(zip(kernels, readable([k.name for k in kernels])), key=lambda pair: (pair[0].file, pair[1])):
        print(f"| {kernel.file} | `{name}` | {kernel.registers} | {kernel.shared} | {kernel.stack} | {kernel.spilled} |")
    bad = [k for k in kernels if k.stack or k.spilled]
    if bad:
        sys.exit(f"{len(bad)} of {len(kernels)} kernels use local memory")


main()
