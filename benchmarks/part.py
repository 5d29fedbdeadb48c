"""The paper's ParT on JetClass jets, ours and as weaver-core wants its inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.interface import Batch

MODEL = "ParticleTransformer_JetClass"
SEED = 1
LENGTH = 128  # of weaver's inputs, which its loader pads to the full length and its model trims


def weaver_inputs(model: Any, batch: Batch) -> dict[str, NDArray[Any]]:
    """Features, four-vectors, mask [B,F,N], and target [B], copied."""
    group = batch.groups["cpf"]
    assert group.four_vectors is not None
    padding = [(0, 0), (0, 0), (0, LENGTH - group.mask.shape[1])]
    features = model.standardise(group.features, group.mask)
    found = {"x": features, "v": group.four_vectors, "mask": group.mask[..., None].float()}
    arrays = {name: np.pad(values.numpy().transpose(0, 2, 1), padding) for name, values in found.items()}
    return arrays | {"target": batch.target.numpy().copy()}
