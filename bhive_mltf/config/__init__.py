"""B-Hive config files, read into frozen, validated objects.

config = load("hlt_run3")
for sentence in config.warnings:
    logger.warning(sentence)
"""

from __future__ import annotations

from bhive_mltf.config.former import as_recorded
from bhive_mltf.config.four_vectors import FourVectors
from bhive_mltf.config.loader import available, load, require_complete
from bhive_mltf.config.reading import with_reference
from bhive_mltf.config.schema import Config, CustomFeature, Group, ProcessCuts
from bhive_mltf.config.truths import Truth

__all__ = [
    "Config",
    "CustomFeature",
    "FourVectors",
    "Group",
    "ProcessCuts",
    "Truth",
    "as_recorded",
    "available",
    "load",
    "require_complete",
    "with_reference",
]
