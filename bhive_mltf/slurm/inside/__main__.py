"""`python -m bhive_mltf.slurm.inside SPEC`, as batch scripts of version 0.1 start it."""

import sys

from bhive_mltf.slurm.batch_step.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
