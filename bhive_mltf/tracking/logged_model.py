"""A torch module as an MLflow LoggedModel, by client API only.

Format "pickle": MLflow's default, pt2, traces `forward` with plain tensors, and ours takes a Batch. Classes are
pickled by name, so `mlflow.pytorch.load_model` works wherever the package of the model is installed. Requirements are
given explicitly: without them mlflow runs pip, which an air-gapped node cannot.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bhive_mltf import compat
from bhive_mltf.files import atomic, disk
from bhive_mltf.tracking.connection import quiet_with_warnings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from torch import nn

_REQUIREMENTS = ("bhive_mltf", "cloudpickle", "mlflow", "numpy", "torch")


def requirements() -> list[str]:
    """What loading a model needs, in the versions that are installed here."""
    found = []
    for package in _REQUIREMENTS:
        try:
            found.append(f"{package}=={metadata.version(package).partition('+')[0]}")
        except metadata.PackageNotFoundError:
            continue
    return found


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


def serialise(module: nn.Module, folder: Path, files: Iterable[str | Path]) -> None:
    """Copy the module, and `files` beside it, to a new folder, whole or not at all."""
    try:
        folder.mkdir(parents=True)
        # on the CPU, so that it loads on a machine without GPU; a copy, since the training goes on
        module = copy.deepcopy(unwrap(module)).to("cpu").eval()
        with quiet_with_warnings():
            compat.save_torch_model(module, folder / "model", requirements())
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


def _size(module: nn.Module) -> int:
    """Bytes of its tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def send(client: MlflowClient, folder: Path, experiment_id: str, run_id: str, record: Mapping[str, Any]) -> None:
    """Create the model, upload its files, mark it ready, tie it to the run.

    record : `name`, `step`, `metrics` {name: [value, time in ms]}, `params`, `tags`. Sent again, by whatever process,
    it is the same model. mlflow before 3.0 keeps no models as such: there the files are artifacts of the run.
    """
    if not compat.has_logged_models():
        client.log_artifacts(run_id, str(folder / "model"), record["name"])
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
    client.log_outputs(run_id, [LoggedModelOutput(model_id, record["step"])])
    points = [
        Metric(key, float(value), timestamp, record["step"], model_id=model_id)
        for key, (value, timestamp) in record["metrics"].items()
    ]
    if points:
        client.log_batch(run_id, metrics=points, synchronous=True)


def _write_ids(folder: Path, run_id: str, model_id: str) -> None:
    from mlflow.models import Model

    path = folder / "model" / "MLmodel"
    model = Model.load(path)
    model.run_id, model.model_id = run_id, model_id
    model.save(path)
