"""Weights that a training begins with: of a checkpoint of this package, or of one of B-Hive's own model classes."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bhive_mltf.errors import CheckpointError, ModelError
from bhive_mltf.models import registry
from bhive_mltf.models.upstream_weights import convert
from bhive_mltf.training.checkpointing import checkpoint

_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 4
# Histories of B-Hive are numbers of numpy.
_NUMBERS = (np.dtype, *(type(np.dtype(name)) for name in ("float64", "float32", "int64")))


@dataclass(frozen=True)
class Weights:
    """What a file holds of a network.

    state : name -> weight. content : the other entries of the file.
    """

    state: Mapping[str, Tensor]
    content: Mapping[str, Any]

    @property
    def is_upstreams(self) -> bool:
        """Whether B-Hive's own classes wrote them."""
        return convert.is_upstreams(self.state)

    def function_version(self, model: str) -> int:
        """The version of the model's function that they were trained with."""
        return registry.entry(model).function if self.is_upstreams else checkpoint.function_version(self.content)


def read(path: Path) -> Weights:
    """The weights in a checkpoint, or in a file of nothing else.

    Raises
    ------
    CheckpointError
        The file is missing, cannot be read without running code, or holds no weights.
    """
    numbers: list[Any] = [np.float64(0).__reduce__()[0], *_NUMBERS]
    try:
        with torch.serialization.safe_globals(numbers):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"the weights in {path} cannot be read ({reason}): give a checkpoint, model_N.pt"
        ) from error
    state = content.get("model_state_dict", content) if isinstance(content, Mapping) else {}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} holds no weights of a model (no model_state_dict): give a model_N.pt")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    rest = {name: value for name, value in content.items() if name != "model_state_dict"}
    return Weights(dict(state), rest if "model_state_dict" in content else {})


def load(model: nn.Module, name: str, path: Path) -> None:
    """Give a model called `name` the weights in a file; its optimiser starts anew.

    Raises
    ------
    CheckpointError
        The file cannot be read, or holds the weights of another network: names what is left over, missing or of
        another shape.
    """
    state = read(path).state
    wanted = model.state_dict()
    if set(state) != set(wanted) and convert.is_upstreams(state):
        try:
            state = convert.to_ours(name, state)
        except ModelError as error:
            raise CheckpointError(f"{path}: {error}") from error
    left, missing = [key for key in state if key not in wanted], [key for key in wanted if key not in state]
    other = [key for key, value in state.items() if key in wanted and value.shape != wanted[key].shape]
    parts = [
        f"{', '.join(names[:_SHOWN])}{f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''} {what}"
        for names, what in ((left, "left over"), (missing, "missing"), (other, "of another shape"))
        if names
    ]
    if parts:
        raise CheckpointError(
            f"{path} holds the weights of another network than {name} ({'; '.join(parts)}): take the model, config and "
            "--model-kwargs of its training"
        )
    model.load_state_dict(state)
