"""Upstream's module name for `bhive_mltf.law.tasks.working_point`."""

from bhive_mltf.law.tasks.working_point import WorkingPointTask
