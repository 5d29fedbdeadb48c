"""`python -m bhive_mltf.law.plot_after_job PLAN`: the figures of a training that ended, drawn by its job."""

from __future__ import annotations

import sys

from bhive_mltf.law.support.training import draw
from bhive_mltf.training.plan import TrainingPlan

if __name__ == "__main__":
    draw(TrainingPlan.read(sys.argv[1]))
