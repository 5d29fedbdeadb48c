"""B-Hive's task classes; importing this package makes all of them known to law."""

from bhive_mltf.law.tasks import (
    base,
    dataset,
    inference,
    input_plotter,
    plotting,
    scaling,
    training,
    working_point,
    wrappers,
)

__all__ = [
    "base",
    "dataset",
    "inference",
    "input_plotter",
    "plotting",
    "scaling",
    "training",
    "working_point",
    "wrappers",
]
