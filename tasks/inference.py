"""Upstream's module name for `bhive_mltf.law.tasks.inference`."""

from bhive_mltf.law.tasks.inference import InferenceTask
