"""Predictions of a model for all jets of a dataset, in the order of its input files.

N: jets; C: classes; R: regression outputs, 0 but for multi-task models.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.errors import DataError

if TYPE_CHECKING:
    import torch

    from bhive_mltf.interface import Batch
    from bhive_mltf.models.base import Tagger

logger = logging.getLogger(__name__)

PER_JET = ("logits", "truth", "process", "kinematics", "jet_id", "regression", "regression_target")
_CHUNK = 1_000_000  # jets at a time in float64
_BATCHES_AT_ONCE = 64  # on a GPU


@dataclass(frozen=True)
class Predictions:
    """What a model says of N jets.

    logits : float32 [N,C], raw outputs.
    truth : int64 [N], index of the class; -1 for a jet in none of them.
    process : int64 [N], index into the config's processes.
    kinematics : float32 [N,2], (pt, eta).
    jet_id : int64 [N,2], (index of the file, entry in its tree); -1 where unknown.
    regression, regression_target : float32 [N,R], regression outputs and what they should be.
    regression_names : of the R outputs.
    seconds : time that the prediction took, reading of the jets included.
    loss, accuracy : mean cross-entropy and accuracy of the jets with a class; NaN without any.
    """

    logits: NDArray[np.float32]
    truth: NDArray[np.int64]
    process: NDArray[np.int64]
    kinematics: NDArray[np.float32]
    jet_id: NDArray[np.int64]
    regression: NDArray[np.float32]
    regression_target: NDArray[np.float32]
    regression_names: tuple[str, ...] = ()
    seconds: float = math.nan
    loss: float = math.nan
    accuracy: float = math.nan

    def __len__(self) -> int:
        return len(self.truth)

    def take(self, jets: NDArray[np.int64] | NDArray[np.bool_]) -> Predictions:
        """The jets at these positions, or where the mask is True; times and means stay those of all."""
        return replace(self, **{name: getattr(self, name)[jets] for name in PER_JET})


def predict(
    model: torch.nn.Module,
    loader: Iterable[Batch],
    device: str | torch.device,
    n_jets: int,
    *,
    input_order: bool = True,
    attack: Callable[[Batch], Batch] | None = None,
) -> Predictions:
    """Predict each of the `n_jets` jets of `loader` once: evaluation mode, full precision, no autocast, no TF32.

    Jets of no class (truth -1) are predicted too; loss and accuracy leave them out.

    Parameters
    ----------
    input_order : sort by (file, entry), the order of the filelist and of its trees; else keep the loader's order,
        for datasets that do not know where their jets come from.
    attack : changes each batch before it is predicted, see `bhive_mltf.attacks`.

    Raises
    ------
    DataError
        The loader gives another number of jets than `n_jets`, none, or one jet twice.
    """
    found = collect(model, loader, device, n_jets, attack=attack)
    return conclude(found, n_jets, input_order=input_order)


def collect(
    model: torch.nn.Module,
    loader: Iterable[Batch],
    device: str | torch.device,
    n_jets: int,
    *,
    attack: Callable[[Batch], Batch] | None = None,
) -> Predictions:
    """As `predict`, in the order of the loader, and without means."""
    if n_jets < 1:
        raise DataError("There are no jets to predict: the test dataset is empty, give another --test-filelist")
    collected: Predictions | None = None
    done, start = 0, time.perf_counter()
    with _evaluating(model, device, differentiable=attack is not None):
        for part in _parts(model, loader, device, attack):
            collected = collected or _empty(n_jets, part)
            if done + len(part) > n_jets:
                raise DataError(f"The loader gave more than the {n_jets} jets of the dataset")
            _store(collected, part, done)
            done += len(part)
    if collected is None or done != n_jets:
        raise DataError(f"The loader gave {done} of the {n_jets} jets of the dataset")
    return replace(collected, seconds=time.perf_counter() - start)


def join(parts: Sequence[Predictions]) -> Predictions:
    """Parts as one, one after the other; it took as long as the slowest."""
    arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in PER_JET}
    return replace(parts[0], seconds=max(part.seconds for part in parts), **arrays)


def conclude(collected: Predictions, n_jets: int, *, input_order: bool) -> Predictions:
    """Predictions of all jets in the order that `predict` gives them, with their means."""
    if len(collected) != n_jets:
        raise DataError(f"There are {len(collected)} predictions of the {n_jets} jets of the dataset")
    _warn_of_non_finite(collected)
    ordered = _in_input_order(collected) if input_order else collected
    loss, accuracy = loss_and_accuracy(ordered.logits, ordered.truth)
    return replace(ordered, loss=loss, accuracy=accuracy)


def loss_and_accuracy(logits: NDArray[np.float32], truth: NDArray[np.int64]) -> tuple[float, float]:
    """Mean cross-entropy and accuracy of the jets with truth >= 0, in float64; NaN without such jets."""
    losses, correct, n_jets = [], 0, 0
    for start in range(0, len(truth), _CHUNK):
        target = truth[start : start + _CHUNK]
        known = target >= 0
        values = logits[start : start + _CHUNK][known].astype(np.float64)
        target = target[known]
        with np.errstate(invalid="ignore"):
            highest = values.max(axis=1, initial=-np.inf)
            log_sum = highest + np.log(np.exp(values - highest[:, None]).sum(axis=1))
            losses.append(float((log_sum - values[np.arange(len(target)), target]).sum()))
        correct += int((values.argmax(axis=1) == target).sum())
        n_jets += len(target)
    if n_jets == 0:
        return math.nan, math.nan
    return math.fsum(losses) / n_jets, correct / n_jets


@contextmanager
def _evaluating(model: torch.nn.Module, device: str | torch.device, *, differentiable: bool) -> Iterator[None]:
    import torch

    from bhive_mltf.training.precision import float32_products

    was_training = model.training
    model.to(device)
    model.eval()
    try:
        # what is made in inference mode can never be differentiated
        quiet = torch.no_grad() if differentiable else torch.inference_mode()
        with quiet, float32_products(), torch.autocast(torch.device(device).type, enabled=False):
            yield
    finally:
        model.train(was_training)


def _parts(
    model: torch.nn.Module,
    loader: Iterable[Batch],
    device: str | torch.device,
    attack: Callable[[Batch], Batch] | None,
) -> Iterator[Predictions]:
    """Predictions of each batch; a GPU works on while they come to the host, which it waits for once in many."""
    import torch

    from bhive_mltf.training.transfer import Transfer

    device = torch.device(device)
    at_once = _at_once(device)
    columns: deque[dict[str, Any]] = deque()
    waiting: list[tuple[dict[str, Any], torch.Tensor]] = []

    def noted() -> Iterator[Batch]:
        for batch in loader:
            columns.append(
                {
                    "truth": batch.target.numpy(),
                    **{name: getattr(batch, name).numpy() for name in ("process", "kinematics", "jet_id")},
                }
            )
            yield batch

    def come() -> Iterator[Predictions]:
        yield from (_of_batch(model, of_jets, values.cpu().numpy()) for of_jets, values in waiting)
        waiting.clear()

    for batch in Transfer(device).over(noted()):
        waiting.append((columns.popleft(), _outputs(model, batch if attack is None else attack(batch))))
        if len(waiting) == at_once:
            yield from come()
    yield from come()


def _at_once(device: torch.device) -> int:
    """Batches whose predictions come to the host together."""
    return _BATCHES_AT_ONCE if device.type == "cuda" else 1


def _outputs(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Logits, regression outputs and what they should be, float32 [B,C+2R]."""
    import torch

    from bhive_mltf.models.base import Outputs

    output = model(batch)
    if not isinstance(output, Outputs):
        values: torch.Tensor = output.float()
        return values
    wanted = cast("Tagger", model).regression_targets(batch)
    return torch.cat([output.logits.float(), output.regression.float(), wanted.float()], 1)


def _of_batch(model: torch.nn.Module, columns: dict[str, Any], values: NDArray[np.float32]) -> Predictions:
    names = tuple(getattr(model, "regression", ()))
    n_classes = values.shape[1] - 2 * len(names)
    logits, regression, wanted = np.split(values, [n_classes, n_classes + len(names)], axis=1)
    return Predictions(
        logits=logits, regression=regression, regression_target=wanted, regression_names=names, **columns
    )


def _empty(n_jets: int, like: Predictions) -> Predictions:
    arrays: dict[str, NDArray[Any]] = {name: getattr(like, name) for name in PER_JET}
    empty: dict[str, Any] = {name: np.empty((n_jets, *a.shape[1:]), a.dtype) for name, a in arrays.items()}
    return replace(like, **empty)


def _store(whole: Predictions, part: Predictions, start: int) -> None:
    rows = slice(start, start + len(part))
    for name in PER_JET:
        getattr(whole, name)[rows] = getattr(part, name)


def _in_input_order(predictions: Predictions) -> Predictions:
    file, entry = predictions.jet_id.T
    order = np.lexsort((entry, file))
    ids = predictions.jet_id[order]
    twice = np.flatnonzero((ids[1:] == ids[:-1]).all(axis=1))
    if len(twice):
        file_index, first_entry = ids[twice[0]]
        raise DataError(
            f"{len(twice)} jets were predicted more than once, the first is entry {first_entry} of file {file_index}; "
            "the dataset holds them twice, build it anew"
        )
    return predictions.take(order)


def _warn_of_non_finite(predictions: Predictions) -> None:
    broken = np.flatnonzero(~np.isfinite(predictions.logits).all(axis=1))
    if len(broken):
        file, entry = predictions.jet_id[broken[0]]
        logger.warning(
            "the model gives infinite or NaN outputs for %d of %d jets, the first is entry %d of file %d",
            len(broken),
            len(predictions),
            entry,
            file,
        )
