"""The name of `bhive_mltf.slurm.batch_step` in batch scripts of version 0.1, which may still be in a queue."""

import sys

from bhive_mltf.slurm.batch_step.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
