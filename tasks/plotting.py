"""Upstream's module name for `bhive_mltf.law.tasks.plotting`."""

from bhive_mltf.law.tasks.plotting import ROCCurveTask
