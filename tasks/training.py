"""Upstream's module name for `bhive_mltf.law.tasks.training`."""

from bhive_mltf.law.tasks.training import TrainingTask
