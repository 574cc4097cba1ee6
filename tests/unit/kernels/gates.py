#!/usr/bin/env python3
"""What the compiler says about the CUDA kernels, as a test: every .cu compiles for an architecture
without a warning, no kernel spills registers or needs a stack, and none takes more registers than
its budget (budgets.txt: it decides how many CTAs fit an SM). Exit 77: there is no nvcc.

    gates.py --nvcc PATH --arch 90a --include DIR... --budgets FILE SOURCE...
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile

FLAGS = ["-std=c++17", "-O3", "-fmad=false", "--Werror=all-warnings", "-D_GNU_SOURCE",
         "-Xcompiler=-Wall,-Wextra,-Wno-missing-field-initializers", "-Xptxas=-v"]


def read_budgets(path):
    budgets = []
    for line in open(path, encoding="utf-8"):
        line = line.split("#")[0].strip()
        if line:
            found = re.fullmatch(r"(.*?)\s+(\d+)(?:\s+(\d+))?", line)
            budgets.append((re.compile(found[1]), int(found[2]), int(found[3] or 0)))
    return budgets


def compile_one(args, source, out):
    number = re.sub("[a-z]+$", "", args.arch)
    known = subprocess.run([args.nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True)
    if f"sm_{number}\n" not in known.stdout:
        print(f"skipped: this nvcc does not know sm_{args.arch}")
        sys.exit(77)
    command = [*args.launcher, args.nvcc, *FLAGS, *[f"-I{i}" for i in args.include],
               f"-gencode=arch=compute_{args.arch},code=sm_{args.arch}", "-c", source, "-o", out]
    done = subprocess.run(command, capture_output=True, text=True)
    text = done.stdout + done.stderr
    # the latter: wgmma operations that wait for each other
    if done.returncode or "warning" in text or "Potential Performance Loss" in text:
        print(text)
        print(f"FAIL {os.path.basename(source)} does not compile cleanly for sm_{args.arch}")
        return None
    return text


def functions(text):
    """(mangled name, stack, spill stores, spill loads, registers or None) as ptxas -v prints them."""
    name = None
    for line in text.splitlines():
        found = re.search(r"Function properties for (\S+)", line)
        if found:
            name = found[1]
        found = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
                          line)
        if found:
            frame = [int(n) for n in found.groups()]
        found = re.search(r"Used (\d+) registers", line)
        if found and name:
            yield (name, *frame, int(found[1]))
            name = None


def demangle(names):
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True)
    return done.stdout.splitlines() if done.returncode == 0 else names


def check(args, source, text, budgets):
    rows = list(functions(text))
    bad = 0
    for (_, stack, stores, loads, registers), name in zip(rows, demangle([r[0] for r in rows])):
        name = re.sub(r"\(.*", "", name.replace("(anonymous namespace)::", "")).replace("void ", "")
        budget, allowed = next(((n, stack) for pattern, n, stack in budgets if pattern.search(f"sm_{args.arch} {name}")),
                               (None, 0))
        problems = []
        if max(stack, stores, loads) > allowed:
            problems.append(f"{stack} bytes of stack, {stores} spilled, {loads} read back")
        if budget is None:
            problems.append("no budget in budgets.txt")
        elif registers > budget:
            problems.append(f"{registers} registers, budget {budget}")
        print(f"{'FAIL' if problems else 'ok  '} sm_{args.arch} {registers:3d}/{budget} {name}"
              + ": " * bool(problems) + "; ".join(problems))
        bad += bool(problems)
    if not rows:
        print(f"ok   {os.path.basename(source)}: no kernels")
    return bad


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--nvcc", default="")
    parser.add_argument("--launcher", default="")
    parser.add_argument("--arch", required=True)
    parser.add_argument("--include", action="append", default=[])
    parser.add_argument("--budgets", required=True)
    parser.add_argument("source", nargs="+")
    args = parser.parse_args()
    if not args.nvcc:
        print("skipped: no nvcc")
        return 77
    args.launcher = [args.launcher] if args.launcher else []
    budgets = read_budgets(args.budgets)
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        for source in args.source:
            text = compile_one(args, source, os.path.join(folder, "out.o"))
            bad += 1 if text is None else check(args, source, text, budgets)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
