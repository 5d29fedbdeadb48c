"""The directory of an exported model: ONNX file, description, scorer, MLflow model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bhive_mltf import compat
from bhive_mltf.evaluation.export import onnx_file, preprocess, pyfunc
from bhive_mltf.evaluation.export.onnx_file import Comparison
from bhive_mltf.evaluation.export.preprocess import FILE_NAME as DESCRIPTION
from bhive_mltf.evaluation.export.preprocess import MODEL_NAME
from bhive_mltf.evaluation.inference import InferencePlan
from bhive_mltf.files import atomic
from bhive_mltf.files.records import Record
from bhive_mltf.training.checkpointing.best_model import load_best_model

if TYPE_CHECKING:
    from bhive_mltf.data.dataset import Dataset
    from bhive_mltf.models.base import Tagger

__all__ = ["DESCRIPTION", "MLFLOW_FOLDER", "MODEL_NAME", "ExportRequest", "make"]

MLFLOW_FOLDER = "mlflow_model"
COMPARISON = "comparison.json"


@dataclass(frozen=True)
class ExportRequest:
    """What is exported.

    plan : the model, and the jets that it is compared on. weights : file of the training's directory.
    training : what `preprocess.json` says of the training.
    """

    plan: InferencePlan
    weights: str
    n_compared: int
    training: Mapping[str, Any]


def make(request: ExportRequest, directory: Path, record: Record) -> Comparison:
    """Write the directory, complete or not at all.

    Raises
    ------
    ModelError : the model cannot be exported, or the file differs from it.
    CheckpointError : the weights are missing or those of another network.
    """
    plan = request.plan
    model = load_best_model(plan.training, plan.config, plan.model_name, plan.model_kwargs, request.weights).float()
    dataset = plan.open()
    weights = (plan.training / request.weights).read_bytes()
    training = {
        **request.training,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "test_dataset_digest": dataset.manifest.digest,
    }
    with atomic.replace_directory(directory) as folder:
        onnx_file.write(model, folder / MODEL_NAME)
        found = onnx_file.compare(model, folder / MODEL_NAME, _batches(request, dataset, model))
        atomic.write_json(folder / DESCRIPTION, preprocess.describe(model, plan.model_name, plan.config, training))
        atomic.write_json(folder / COMPARISON, {**asdict(found), "tolerance": onnx_file.TOLERANCE})
        preprocess.write_scorer(folder)
        if compat.has("pandas"):  # which full mlflow brings, and its small version does not
            pyfunc.save(folder, folder / MLFLOW_FOLDER)
        record.write(folder)
    return found


def _batches(request: ExportRequest, dataset: Dataset, model: Tagger) -> Any:  # noqa: ANN401 - an iterator of batches
    # small batches, so that many lengths of padding are compared
    plan = request.plan.model_copy(update={"batch_size": 16, "n_threads": 0, "unmatched": "drop"})
    loader = plan.loader(dataset, range(min(request.n_compared, len(dataset))), model.inputs)
    try:
        yield from loader.epoch(0)
    finally:
        loader.close()
