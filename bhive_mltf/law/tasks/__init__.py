"""B-Hive's task classes; importing this package makes all of them known to law."""

from bhive_mltf.law.tasks import (
    base,
    dataset,
    export,
    inference,
    input_plotter,
    optimize,
    plotting,
    scaling,
    training,
    working_point,
    wrappers,
)
