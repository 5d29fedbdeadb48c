"""All that imports law or luigi: mixins, parameters, messages, targets, workflows, and in `tasks` the task classes."""

from bhive_mltf.law.mixins import MLflowMixin, RanksMixin, SlurmMixin

__all__ = ["MLflowMixin", "RanksMixin", "SlurmMixin"]
