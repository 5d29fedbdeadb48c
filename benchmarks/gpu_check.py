"""What to run first on a GPU: predictions beside measurements, a verdict per row, one JSON file.

    make gpu-check [ONLY=attention,speed]
    python benchmarks/gpu_check.py [--only ROW,ROW] [--device cuda] [--json FILE]

Without a GPU the same rows run on the CPU as far as they can, smaller, so that the script does not rot. Rows import
neither law nor mlflow. A row that fails does not stop the others; the exit code says whether one did. weaver-core is
taken from $WEAVER_PYTHON or `make weaver`, where there is one.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gpu_memory
import gpu_numbers
import gpu_speed
import torch
from gpu_row import ROWS, FailedError, Found

from bhive_mltf.errors import nearest

JSON = Path("gpu_check.json")
# what takes longest comes last
MODULES = (gpu_numbers, gpu_memory, gpu_speed)


def driver() -> str:
    """Version of NVIDIA's driver; empty without one."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception:  # noqa: BLE001 - no driver, or nothing that asks it
        return ""


def conditions(device: torch.device) -> Found:
    on_gpu = device.type == "cuda"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device.type,
        "card": torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine(),
        "driver": driver(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "threads": torch.get_num_threads(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="all", help=f"rows, of {', '.join(ROWS)}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, default=JSON)
    options = parser.parse_args()
    names = list(ROWS) if options.only in ("", "all") else options.only.split(",")
    for name in names:
        if name not in ROWS:
            raise SystemExit(f"there is no row '{name}' (nearest: {nearest(name, ROWS, 1)[0]}): take {', '.join(ROWS)}")
    device = torch.device(options.device)
    rows = []
    for name in names:
        expectation, function = ROWS[name]
        started = time.perf_counter()
        found: Found = {}
        try:
            found, verdict = function(device), "ok"
        except FailedError as error:
            verdict = f"FAILED: {error}"
        except Exception as error:  # noqa: BLE001 - the other rows are wanted too
            verdict = f"FAILED: {type(error).__name__}: {error}"
        seconds = time.perf_counter() - started
        rows.append({"name": name, "expected": expectation, "found": found, "verdict": verdict, "seconds": seconds})
        print(f"{name:<12}{verdict}  ({seconds:.0f} s)\n  expected: {expectation}\n  found:    {found}", flush=True)
    options.json.write_text(json.dumps({"conditions": conditions(device), "rows": rows}, indent=2) + "\n")
    return int(any(one["verdict"] != "ok" for one in rows))


if __name__ == "__main__":
    raise SystemExit(main())
