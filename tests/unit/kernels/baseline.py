#!/usr/bin/env python3
"""What each object file of the build may ask of an x86-64 processor, read from the instructions in it.

A program chooses its instruction set at run time, so nothing that runs before the choice or besides
it may need more than every x86-64 has: no AVX outside of the sets (kernels/CMakeLists.txt) and of the
few functions that are called behind a question of their own, and in a set nothing of a larger one.
Exit 77: this is another processor, or there is no objdump.

    baseline.py BUILD_DIR [--machine NAME]
"""
import argparse
import collections
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOMS = ("base", "model", "kernels", "proto", "worker", "coordinator", "cli", "examples")

# Functions compiled for more than the rest of their file, by file. They are called where
# __builtin_cpu_supports, an ifunc resolver or the chosen set says so.
BEHIND_A_QUESTION = {
    "model/quantize.c": r"quantize_groups_avx2(\.|$)",
    "worker/engine/sampler_row.c": r"\.(avx2|arch_x86_64_v4)(\.|$)",
    "kernels/bench/cpu-ceilings.c": r"_(256|512)(\.|$)",
}

FEATURES = {  # what an instruction needs, by its text
    "avx": re.compile(r"^(\{\w+\} )?v(?!err|erw|mcall|mx)[a-z0-9]+\b|%ymm"),
    "avx512": re.compile(r"%zmm|%k[0-7]\b|%[xy]mm(1[6-9]|2\d|3[01])\b"),
    "vnni": re.compile(r"\bvpdp"),
    "gfni": re.compile(r"gf2p8"),
}
SETS = {  # what a set may use; the whole of it must be found in it
    "c": (),
    "avx2": ("avx",),
    "avxvnni": ("avx", "vnni"),
    "avx512": ("avx", "avx512"),
    "avx512vnni": ("avx", "avx512", "vnni"),
    "avx512gfni": ("avx", "avx512", "vnni", "gfni"),
    "free_order": ("avx", "avx512", "vnni", "gfni"),  # of the benchmark, for the best set
}


def instructions(path):
    """(function, instruction) of an object file."""
    out = subprocess.run(["objdump", "-d", "--no-show-raw-insn", path], check=True, text=True,
                         capture_output=True).stdout
    function = "?"
    for line in out.splitlines():
        header = re.match(r"[0-9a-f]+ <(.*)>:$", line)
        if header:
            function = header[1]
        elif "\t" in line:
            yield function, line.split("\t", 1)[1]


def look(build, entry):
    """Features used in an object, and complaints about it."""
    source = os.path.relpath(entry["file"], entry["root"])
    found = re.search(r"/glmd_kernels_(\w+)\.dir/", entry["object"])
    of_set = found[1] if found and found[1] in SETS else None
    allowed = SETS.get(of_set, ())
    exempt = re.compile(BEHIND_A_QUESTION[source]) if source in BEHIND_A_QUESTION else None
    used, complaints, n = set(), [], 0
    for function, text in instructions(build / entry["object"]):
        n += 1
        for feature, pattern in FEATURES.items():
            if not pattern.search(text):
                continue
            if exempt and exempt.search(function):
                used.add("exempt")
            else:
                used.add(feature)
                if feature not in allowed and len(complaints) < 3:
                    complaints.append(f"{entry['object']}: {function} needs {feature}: {text}")
    return of_set, source, used, complaints, n


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--machine", default=os.uname().machine)
    args = parser.parse_args()
    if args.machine.lower() not in ("x86_64", "amd64") or not shutil.which("objdump"):
        print("skipped: not an x86-64 build, or no objdump")
        return 77
    root = pathlib.Path(__file__).resolve().parents[3]
    entries = []
    for entry in json.loads((args.build / "compile_commands.json").read_text()):
        name = re.search(r" -o (\S+\.o) ", entry["command"])
        source = os.path.relpath(entry["file"], root)
        if name and source.split("/")[0] in ROOMS and (args.build / name[1]).exists():
            entries.append({"object": name[1], "file": entry["file"], "root": root})
    used_by, exempt_in, complaints, total = collections.defaultdict(set), set(), [], 0
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for of_set, source, used, bad, n in pool.map(lambda e: look(args.build, e), entries):
            complaints += bad
            total += n
            if "exempt" in used:
                exempt_in.add(source)
            if of_set:
                used_by[of_set] |= used
    # that the patterns still find what is there
    for name, allowed in SETS.items():
        for feature in allowed:
            if name in used_by and feature not in used_by[name]:
                complaints.append(f"{name}: no {feature} in it: are its flags right?")
    for missing in sorted(set(SETS) - {"free_order"} - set(used_by)):
        complaints.append(f"{missing}: no objects of this set were found")
    print(f"{len(entries)} objects, {total} instructions; sets: {', '.join(sorted(used_by))}; "
          f"functions behind a question: {', '.join(sorted(exempt_in)) or 'none'}")
    print("\n".join(complaints))
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
