"""All figures of the data path in one go: conversion, loader, cost per jet; a table beside the goals.

    python benchmarks/data_path.py --data DIR [--figure FILE.png] [--scratch DIR] [--quick]

Runs bench_convert.py, bench_loader.py and scale.py one after the other, shows what they say and ends with the table of
RESULTS.md in Markdown and one JSON object of all figures. `--quick` takes the smallest settings, to see that it works.
The machine should have nothing else to do: figures of two cores count only beside an empty loop that gives 2.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

QUICK: Mapping[str, Sequence[str]] = {
    "bench_convert.py": ["--repeats", "1", "--copies", "1"],
    "bench_loader.py": ["--rounds", "1", "--copies", "1", "--sets", "arrow float32"],
    "scale.py": ["--jets", "1000", "2000"],
}
# figure, goal, and whether more is better
GOALS = (
    ("convert_over_uproot", 0.7, True),
    ("loader_over_weaver", 25, True),
    ("loader_over_memcpy", 3, False),
    ("bytes_over_root", 1.25, False),
    ("worker_peak_mb", 300, False),
    ("convert_two_cores_over_one", 1.8, True),
    ("loader_two_cores_over_one", 1.8, True),
    ("loader_two_ranks_over_one", 1.8, True),
)
NOT_FREE = "not measurable: {:.2f} where an empty loop gave {:.2f}"


def run(script: str, options: Sequence[str]) -> dict[str, Any]:
    """Run a benchmark, show what it says, and take its last line."""
    print(f"== {script}", flush=True)
    command = [sys.executable, str(Path(__file__).with_name(script)), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last = ""
        for last in process.stdout:
            print(last, end="", flush=True)
    if process.returncode:
        raise SystemExit(f"{script} ended with code {process.returncode}")
    found: dict[str, Any] = json.loads(last)
    return found


def goals(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Figures beside their goals."""
    lines = ["| figure | goal | found |", "| --- | --- | --- |"]
    for name, goal, more in GOALS:
        source = found["bench_convert.py" if name.startswith(("convert", "bytes")) else "bench_loader.py"]
        value = source.get(name)
        if value is None:
            lines.append(f"| `{name}` | {goal} | not measured |")
            continue
        text = f"{value:.2f}" + ("" if (value >= goal) == more else ", **missed**")
        if f"{name}_machine" in source:
            loop, rounds = source[f"{name}_machine"], source[f"{name}_valid_rounds"]
            text = f"{text} (an empty loop: {loop:.2f}, {rounds} rounds)" if rounds else NOT_FREE.format(value, loop)
        lines.append(f"| `{name}` | {goal} | {text} |")
    return "\n".join(lines)


def sets(found: Mapping[str, Any]) -> str:
    """The layouts of a training set."""
    lines = ["| stored as | jets/s, no workers | over weaver | over memcpy, first / later | bytes over ROOT |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for name, row in found["sets"].items():
        memcpy = f"{row['over_memcpy']:.1f} / {row['over_memcpy_later']:.1f}"
        rate, size = row["jets_per_s"] / 1e3, row["bytes_over_root"]
        lines.append(f"| {name} | {rate:.0f}k | {row['over_weaver']:.1f} | {memcpy} | {size:.2f} |")
    return "\n".join(lines)


def scale(found: Mapping[str, Any]) -> str:
    """Cost per jet in microseconds and memory in MB by the number of jets."""
    names = "convert_us", "convert_work_us", "first_epoch_us", "later_epoch_us", "convert_mb", "load_mb"
    lines = ["| jets | conversion | without files' own cost | first epoch | later | MB, conversion | MB, loading |"]
    lines.append("| --- " * 7 + "|")
    lines += [
        f"| {row['jets']:,} | " + " | ".join(f"{row[name]:.1f}" for name in names) + " |" for row in found["scale"]
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of JetClass files")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for what is written; default: temporary")
    parser.add_argument("--figure", type=Path, default=None, help="where the figure of cost per jet goes")
    parser.add_argument("--quick", action="store_true", help="the smallest settings")
    arguments = parser.parse_args()
    common = ["--scratch", str(arguments.scratch)] if arguments.scratch else []
    options = {
        "bench_convert.py": ["--data", str(arguments.data)],
        "bench_loader.py": ["--data", str(arguments.data)],
        "scale.py": ["--figure", str(arguments.figure)] if arguments.figure else [],
    }
    found = {}
    for script, own in options.items():
        found[script] = run(script, [*own, *common, *(QUICK[script] if arguments.quick else ())])
    tables = goals(found), sets(found["bench_loader.py"]), scale(found["scale.py"])
    print("", *tables, sep="\n\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
