"""A torch module as an MLflow LoggedModel, by client API only.

Format "pickle": MLflow's default, pt2, traces `forward` with plain tensors, and ours takes a Batch. Classes are
pickled by name, so `mlflow.pytorch.load_model` works wherever the package of the model is installed. Requirements are
given explicitly: without them mlflow runs pip, which an air-gapped node cannot.
"""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bhive_mltf import compat
from bhive_mltf.files import atomic, disk
from bhive_mltf.tracking.connection import quiet_with_warnings
from bhive_mltf.tracking.store import is_server

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature
    from torch import nn

logger = logging.getLogger(__name__)
_noted = False
_REQUIREMENTS = ("bhive_mltf", "cloudpickle", "mlflow", "numpy", "torch")


@dataclass(frozen=True)
class ModelArrays:
    """Signature and input example of a model.

    inputs, outputs : shape by name of array, -1 for a free axis; outputs are float32. example : of the inputs, by name.
    """

    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, tuple[int, ...]]
    example: Mapping[str, np.ndarray[Any, Any]]


def unwrap(module: nn.Module) -> nn.Module:
    """The module without the wrappers of DDP and `torch.compile`."""
    from torch.nn.parallel import DistributedDataParallel

    while True:
        if isinstance(module, DistributedDataParallel):
            module = module.module
        elif hasattr(module, "_orig_mod"):
            module = cast("nn.Module", module._orig_mod)
        else:
            return module


def serialise(module: nn.Module, folder: Path, files: Iterable[str | Path], arrays: ModelArrays | None = None) -> None:
    """Copy the module, and `files` beside it, to a new folder, whole or not at all."""
    try:
        folder.mkdir(parents=True)
        # on the CPU, so that it loads on a machine without GPU; a copy, since the training goes on
        module = copy.deepcopy(unwrap(module)).to("cpu").eval()
        with quiet_with_warnings():
            about: dict[str, Any] = (
                {} if arrays is None else {"signature": _signature(arrays), "input_example": dict(arrays.example)}
            )
            compat.save_torch_model(module, folder / "model", compat.pinned(_REQUIREMENTS), **about)
        for file in map(Path, files):
            (folder / "model" / "extra_files").mkdir(exist_ok=True)
            shutil.copy(file, folder / "model" / "extra_files" / file.name)
    except BaseException as error:
        # torch fails in its own words where a disk is full
        refused = disk.refusal(folder.parent, _size(module)) if isinstance(error, RuntimeError) else None
        shutil.rmtree(folder, ignore_errors=True)
        if refused is not None:
            raise disk.cannot_write(folder, refused, "the model") from error
        raise


def _signature(arrays: ModelArrays) -> ModelSignature:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    inputs: list[ColSpec | TensorSpec] = [
        TensorSpec(arrays.example[name].dtype, shape, name) for name, shape in arrays.inputs.items()
    ]
    outputs: list[ColSpec | TensorSpec] = [
        TensorSpec(np.dtype(np.float32), shape, name) for name, shape in arrays.outputs.items()
    ]
    return ModelSignature(Schema(inputs), Schema(outputs))


def _size(module: nn.Module) -> int:
    """Bytes of its tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def send(client: MlflowClient, folder: Path, experiment_id: str, run_id: str, record: Mapping[str, Any]) -> None:
    """Create the model, upload its files, mark it ready, tie it to the run.

    record : `name`, `step`, `metrics` {name: [value, time in ms]}, `params`, `tags`; `register` and `alias` of a model
    that becomes a version of a registered one. Sent again, by whatever process, it is the same model. Below MLflow 3
    it is a folder of plain artifacts, called like the model.
    """
    if not compat.has_logged_models():
        _send_plain(client, folder, run_id, record)
        return
    from mlflow.entities import LoggedModelOutput, Metric

    made = folder / "model_id"
    if not made.exists():
        model = client.create_logged_model(
            experiment_id, record["name"], run_id, record["tags"], record["params"], model_type="jet tagger"
        )
        _write_ids(folder, run_id, str(model.model_id))
        atomic.write_text(made, str(model.model_id))
    model_id = made.read_text(encoding="utf-8")
    client.log_model_artifacts(model_id, str(folder / "model"))
    client.finalize_logged_model(model_id, "READY")
    outputs = client.get_run(run_id).outputs
    if outputs is None or model_id not in [output.model_id for output in outputs.model_outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, record["step"])])  # refused the second time
    points = [
        Metric(key, float(value), timestamp, record["step"], model_id=model_id)
        for key, (value, timestamp) in record["metrics"].items()
    ]
    if points:
        client.log_batch(run_id, metrics=points, synchronous=True)
    if record.get("register"):
        # a store that is opened here looks for `models:/` in the store of the process, which may be another one
        own = str(client.get_logged_model(model_id).artifact_location)
        source = f"models:/{model_id}" if is_server(client.tracking_uri) else own
        _register(client, folder, source, run_id, record, model_id=model_id)


def _send_plain(client: MlflowClient, folder: Path, run_id: str, record: Mapping[str, Any]) -> None:
    """For an MLflow without logged models."""
    global _noted  # noqa: PLW0603 - one note per process
    if not _noted:
        _noted = True
        logger.warning("this MLflow has no logged models: models are plain artifacts of the run; install mlflow >= 3")
    place = str(record["name"])
    client.log_artifacts(run_id, str(folder / "model"), place)
    if record.get("register"):
        run = client.get_run(run_id)
        _register(client, folder, f"{run.info.artifact_uri}/{place}", run_id, record)


def _register(
    client: MlflowClient,
    folder: Path,
    source: str,
    run_id: str,
    record: Mapping[str, Any],
    **model: Any,  # noqa: ANN401
) -> None:
    """Make a version of a registered model, once, and give it its alias.

    model : `model_id` of a logged model.
    """
    from mlflow.exceptions import MlflowException

    name, made = record["register"], folder / "version"
    if not made.exists():
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = client.create_model_version(name, source, run_id, **model)
        atomic.write_text(made, str(version.version))
    if record.get("alias"):
        client.set_registered_model_alias(name, record["alias"], made.read_text(encoding="utf-8"))


def _write_ids(folder: Path, run_id: str, model_id: str) -> None:
    from mlflow.models import Model

    path = folder / "model" / "MLmodel"
    model = Model.load(path)
    model.run_id, model.model_id = run_id, model_id
    model.save(path)
