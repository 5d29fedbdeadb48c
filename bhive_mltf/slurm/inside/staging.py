"""`python -m bhive_mltf.slurm.inside.staging`, as batch steps of version 0.1 start it."""

import sys

from bhive_mltf.slurm.batch_step.staging import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
