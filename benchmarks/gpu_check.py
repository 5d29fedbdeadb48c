"""What to run first on a GPU: predictions beside measurements, a verdict per row, one JSON file.

    make gpu-check [ONLY=attention,speed]
    python benchmarks/gpu_check.py [--only ROW,ROW] [--device cuda] [--json FILE] [--limit SECONDS]

Without a GPU the same rows run on the CPU as far as they can, smaller, so that the script does not rot. Rows import
neither law nor mlflow. Each row runs in a process of its own, since a GPU that failed once does not serve that process
again, and within a time; the file is written after each row. A row that fails, hangs or dies does not stop the others;
the exit code says whether one did. weaver-core is taken from $WEAVER_PYTHON or `make weaver`, where there is one.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# whatever asks for GPUs while this is imported: CUDA itself would be of no use any more to processes that are forked
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gpu_memory
import gpu_numbers
import gpu_speed
from gpu_process import LIMIT, check
from gpu_row import ROWS

from bhive_mltf.errors import nearest

JSON = Path("gpu_check.json")
# what takes longest comes last
MODULES = (gpu_numbers, gpu_memory, gpu_speed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="all", help=f"rows, of {', '.join(ROWS)}")
    parser.add_argument("--device", default="", help="cuda or cpu; default: cuda where there is one")
    parser.add_argument("--json", type=Path, default=JSON)
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for all rows")
    options = parser.parse_args()
    names = list(ROWS) if options.only in ("", "all") else options.only.split(",")
    for name in names:
        if name not in ROWS:
            raise SystemExit(f"there is no row '{name}' (nearest: {nearest(name, ROWS, 1)[0]}): take {', '.join(ROWS)}")
    rows = check({name: ROWS[name] for name in names}, options.device, options.json, options.limit)
    return int(any(one["verdict"] != "ok" for one in rows))


if __name__ == "__main__":
    raise SystemExit(main())
