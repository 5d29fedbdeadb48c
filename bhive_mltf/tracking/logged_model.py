"""A torch module as an MLflow LoggedModel, by client API only.

Format "pickle": MLflow's default, pt2, traces `forward` with plain tensors, and ours takes a Batch. Classes are
pickled by name, so `mlflow.pytorch.load_model` works wherever the package of the model is installed. Requirements are
given explicitly: without them mlflow runs pip, which an air-gapped node cannot.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, cast

from bhive_mltf.tracking import convert
from bhive_mltf.tracking.connection import quiet_with_warnings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric
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


class LoggedModelUpload:
    """One module on its way to MLflow; may be sent again after a failure without making a second model."""

    def __init__(
        self,
        module: nn.Module,
        name: str,
        experiment_id: str,
        *,
        step: int,
        metrics: Mapping[str, tuple[float, int]],
        params: Mapping[str, object],
        tags: Mapping[str, object],
        files: Iterable[str | Path],
    ) -> None:
        """Copy and serialise the module.

        metrics : name -> (value, timestamp in ms).
        """
        self._name = convert.model_name(name)
        self._experiment_id = experiment_id
        self._step = step
        self._metrics = metrics
        self._params = {convert.name(key): convert.as_text(value)[: convert.MAX_PARAM] for key, value in params.items()}
        self._tags = convert.run_tags(tags)
        self._model_id: str | None = None
        self._directory = Path(tempfile.mkdtemp(prefix="bhive-mltf-model-"))
        try:
            self._save(module)
            self._copy_files(files)
        except BaseException:
            self.discard()
            raise

    def _save(self, module: nn.Module) -> None:
        import mlflow.pytorch

        # on the CPU, so that it loads on a machine without GPU; a copy, since the training goes on
        module = copy.deepcopy(unwrap(module)).to("cpu").eval()
        with quiet_with_warnings():
            mlflow.pytorch.save_model(
                module,
                self._directory / "model",
                pip_requirements=requirements(),
                serialization_format="pickle",
                signature=False,
            )

    def _copy_files(self, files: Iterable[str | Path]) -> None:
        for file in map(Path, files):
            folder = self._directory / "model" / "extra_files"
            folder.mkdir(exist_ok=True)
            shutil.copy(file, folder / file.name)

    def send(self, client: MlflowClient, run_id: str) -> None:
        """Create the model, upload its files, mark it ready, tie it to the run."""
        from mlflow.entities import LoggedModelOutput

        if self._model_id is None:
            model = client.create_logged_model(
                self._experiment_id, self._name, run_id, self._tags, self._params, model_type="jet tagger"
            )
            self._model_id = str(model.model_id)
            self._write_ids(run_id, self._model_id)
        client.log_model_artifacts(self._model_id, str(self._directory / "model"))
        client.finalize_logged_model(self._model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(self._model_id, self._step)])
        if self._metrics:
            client.log_batch(run_id, metrics=self._points(self._model_id), synchronous=True)

    def _points(self, model_id: str) -> list[Metric]:
        from mlflow.entities import Metric

        return [
            Metric(key, value, timestamp, self._step, model_id=model_id)
            for key, (value, timestamp) in self._metrics.items()
        ]

    def _write_ids(self, run_id: str, model_id: str) -> None:
        from mlflow.models import Model

        path = self._directory / "model" / "MLmodel"
        model = Model.load(path)
        model.run_id, model.model_id = run_id, model_id
        model.save(path)

    def discard(self) -> None:
        """Remove the local copy."""
        shutil.rmtree(self._directory, ignore_errors=True)
