"""`python -m bhive_mltf.training PLAN`: one rank of a training."""

from __future__ import annotations

import sys

from bhive_mltf.training.rank import main

if __name__ == "__main__":
    main(sys.argv[1:])
