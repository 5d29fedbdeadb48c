"""The best model of a training, ready to predict."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bhive_mltf.config import Config
from bhive_mltf.errors import CheckpointError
from bhive_mltf.models import registry
from bhive_mltf.models.base import Tagger
from bhive_mltf.training.checkpointing import checkpoint


def load_best_model(
    directory: Path,
    config: Config,
    model_name: str,
    model_kwargs: Mapping[str, Any],
    file: str = checkpoint.BEST_NAME,
) -> Tagger:
    """The model of `best_model.pt`, or of another `file` of the training, in evaluation mode on the CPU.

    Raises
    ------
    CheckpointError : the file is missing or damaged, or holds the weights of another network than the config and the
        sizes describe.
    """
    path = directory / file
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: train the model first, or look for it under another version")
    state = checkpoint.read_checkpoint(path)
    version = checkpoint.function_version(state)
    model = registry.create(model_name, config, function_version=version, **model_kwargs)
    try:
        model.load_state_dict(state["model_state_dict"])
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(
            f"{path} holds another network than {model_name} with config '{config.name}' ({reason}): use the config "
            "and the --model-kwargs of the training"
        ) from error
    return model.eval()
