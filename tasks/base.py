"""Upstream's module name for `bhive_mltf.law.tasks.base`."""

from bhive_mltf.law.tasks.base import BaseTask
