"""`python -m bhive_mltf.slurm.batch_step SPEC`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from bhive_mltf.slurm.batch_step.supervisor import Supervisor


def main() -> int:
    """Run the job of the spec named by the only argument; the exit code of the batch step."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m bhive_mltf.slurm.batch_step SPEC\n")
        return 2
    return Supervisor.of(Path(sys.argv[1])).run()


if __name__ == "__main__":
    sys.exit(main())
