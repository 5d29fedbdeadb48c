"""What the logged models of a training say of their inputs."""

import numpy as np
import pytest
from torch import nn

from bhive_mltf.training.monitoring.mlflow_observer import arrays_of
from tests.helpers.model_factory import CONFIGS, jets, small


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_signature_is_that_of_a_batch(name):
    model = small(name)
    found, batch = arrays_of(model), jets(model, [2, 3])
    given = {
        f"{group}_{what}": array
        for group, one in batch.groups.items()
        for what, array in (("features", one.features), ("mask", one.mask), ("four_vectors", one.four_vectors))
        if array is not None
    }
    assert set(found.inputs) == set(found.example) == set(given)
    for key, shape in found.inputs.items():
        array = given[key].numpy()
        example = found.example[key]
        assert example.dtype == array.dtype
        assert len(shape) == array.ndim
        for wanted, one, other in zip(shape, array.shape, example.shape, strict=True):
            assert wanted == -1 or wanted == one == other, key
    assert found.outputs["logits"] == (-1, len(model.classes))
    assert found.outputs.get("regression", (-1, 0)) == (-1, len(model.regression))
    assert all(np.isfinite(array).all() for array in found.example.values())


def test_a_network_of_another_kind_has_none():
    assert arrays_of(nn.Linear(2, 1)) is None
