"""Mixins for law tasks of any package: jobs of SLURM, one MLflow run, several ranks.

`class TrainingTask(SlurmMixin, MLflowMixin, RanksMixin, ...)`: any of them, in this order, before the task's own bases.
They need of a task `local_path`, `to_str_params`, `complete` and `publish_message`, and wrap its `run`.
"""

from bhive_mltf.law.mixins.mlflow import MLflowMixin
from bhive_mltf.law.mixins.ranks import RanksMixin
from bhive_mltf.law.mixins.slurm import SlurmMixin

__all__ = ["MLflowMixin", "RanksMixin", "SlurmMixin"]
