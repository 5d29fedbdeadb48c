"""Upstream's module name for `bhive_mltf.law.tasks.dataset`."""

from bhive_mltf.law.tasks.dataset import ConvertNtuples, DatasetConstructorTask
