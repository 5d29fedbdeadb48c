"""Upstream's module name for `bhive_mltf.law.tasks.scaling`."""

from bhive_mltf.law.tasks.scaling import ScalingTask
