"""`python -m tasks.support.curves PLAN`: the figures of a training that ended, drawn by its job."""

from __future__ import annotations

import sys

from bhive_mltf.training.plan import TrainingPlan
from tasks.support.training import draw

if __name__ == "__main__":
    draw(TrainingPlan.read(sys.argv[1]))
