"""A model as an ONNX file, and the proof that it gives what the model gives.

Axes: B jets, N slots of a group; both free in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bhive_mltf.errors import ModelError
from bhive_mltf.evaluation.export.padded import ExportedModel, Port, ports
from bhive_mltf.evaluation.export.quiet import without_remarks
from bhive_mltf.files import atomic
from bhive_mltf.interface import Batch
from bhive_mltf.models.base import Outputs, Tagger
from bhive_mltf.models.resolve import GLOBAL

TOLERANCE = 1e-4
OPSET = 18
PROBABILITIES, REGRESSION = "probabilities", "regression"
_EXAMPLE_JETS, _EXAMPLE_SLOTS = 3, 7  # unlike each other and every other size, so that no axis is taken for another


def write(model: Tagger, path: Path) -> None:
    """Write `model` as ONNX, whole or not at all.

    Raises
    ------
    ModelError : onnx or onnxscript is not installed, or the model's padded form is not known.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ModelError(f"no ONNX file without the package {error.name}: pip install 'bhive_mltf[export]'") from error
    from torch.export import Dim

    exported = ExportedModel(model).eval()
    axes = tuple(dict.fromkeys(_free_axes(port), Dim.DYNAMIC) for port in exported.ports)
    with atomic.replace_file(path) as temporary, without_remarks(), torch.no_grad():
        torch.onnx.export(
            exported,
            tuple(_example(port, model) for port in exported.ports),
            str(temporary),
            input_names=[port.name for port in exported.ports],
            output_names=[PROBABILITIES, *([REGRESSION] if model.regression else [])],
            dynamic_shapes=(axes,),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _free_axes(port: Port) -> tuple[int, ...]:
    """Jets, and slots where there are some."""
    return (0,) if port.what == "n" or port.group == GLOBAL else (0, 1)


def _example(port: Port, model: Tagger) -> Tensor:
    group = model.inputs.group(port.group)
    if port.what == "n":
        return torch.tensor([_EXAMPLE_SLOTS, 2, 0][:_EXAMPLE_JETS])
    width = 4 if port.what == "four_vectors" else len(group.columns)
    shape = (_EXAMPLE_JETS, width) if port.group == GLOBAL else (_EXAMPLE_JETS, _EXAMPLE_SLOTS, width)
    return torch.rand(shape) + 0.5


@dataclass(frozen=True)
class Comparison:
    """ONNX against the model on some jets.

    n_jets : compared. largest : difference of any probability, or relative one of a regression output.
    lengths : the numbers of candidates of the jets that were compared.
    """

    n_jets: int
    largest: float
    lengths: tuple[int, ...]


def compare(model: Tagger, path: Path, batches: Iterable[Batch]) -> Comparison:
    """Run both on batches as the loader gives them.

    Raises
    ------
    ModelError : they differ by more than `TOLERANCE`, or onnxruntime cannot run the file.
    """
    run, own = runner(path), model.float().cpu().eval()
    largest, n_jets, lengths = 0.0, 0, set()
    for batch in batches:
        with torch.no_grad():
            expected = _values(own(batch))
        found = run(arrays(ports(model), batch))
        for one, other in zip(found, expected, strict=True):
            scale = np.maximum(np.abs(other), 1.0)
            largest = max(largest, float((np.abs(one - other) / scale).max(initial=0.0)))
        n_jets += len(batch)
        for name, group in batch.groups.items():
            if name != GLOBAL:
                lengths |= set(group.mask.sum(1).tolist())
    if not largest <= TOLERANCE:
        raise ModelError(
            f"'{path}' differs from the model by {largest:.2g} on {n_jets} jets, at most {TOLERANCE:g} is allowed: "
            "report this with the model and the versions of torch and onnxruntime"
        )
    return Comparison(n_jets, largest, tuple(sorted(lengths)))


def _values(output: Tensor | Outputs) -> list[np.ndarray[Any, Any]]:
    if isinstance(output, Outputs):
        return [output.logits.float().softmax(1).numpy(), output.regression.float().numpy()]
    return [output.float().softmax(1).numpy()]


def arrays(inputs: Iterable[Port], batch: Batch) -> dict[str, np.ndarray[Any, Any]]:
    """The inputs of the file from a batch."""
    found = {}
    for port in inputs:
        group = batch.groups[port.group]
        if port.what == "n":
            found[port.name] = group.mask.sum(1).numpy().astype(np.int64)
            continue
        values = group.features if port.what == "features" else group.four_vectors
        assert values is not None
        found[port.name] = (values[:, 0] if port.group == GLOBAL else values).float().numpy()
    return found


def runner(path: Path) -> Callable[[dict[str, np.ndarray[Any, Any]]], list[np.ndarray[Any, Any]]]:
    """A function that runs an ONNX file on the CPU.

    Raises
    ------
    ModelError : onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError(f"no comparison without the package {error.name}: pip install 'bhive_mltf[export]'") from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return partial(session.run, None)
