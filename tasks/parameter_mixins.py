"""Upstream's module name for `bhive_mltf.law.parameters`."""

from bhive_mltf.law.parameters import (
    AttackDependency,
    DatasetDependency,
    TestAttackDependency,
    TestDatasetDependency,
    TrainingDependency,
    ValDatasetDependency,
)
