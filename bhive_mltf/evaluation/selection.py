"""Which jets are evaluated: those with a class and finite outputs, inside the cuts of their process."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.errors import DataError
from bhive_mltf.evaluation.discriminators import probabilities
from bhive_mltf.evaluation.predictions import Predictions

if TYPE_CHECKING:
    from bhive_mltf.config import Config, ProcessCuts

logger = logging.getLogger(__name__)

COMBINED = "all"


@dataclass(frozen=True)
class EvaluatedJets:
    """Jets ready for evaluation.

    probabilities : float64 [N,C].
    truth : int64 [N], a class index.
    left_out : why jets were left out, and how many; reasons without jets are not named.
    """

    probabilities: NDArray[np.float64]
    truth: NDArray[np.int64]
    process: NDArray[np.int64]
    kinematics: NDArray[np.float32]
    left_out: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.truth)


def select_jets(predictions: Predictions, classes: Iterable[str]) -> EvaluatedJets:
    """The jets of `predictions` with a class and finite outputs.

    Raises
    ------
    DataError
        The outputs are not one per class, or all jets belong to fewer than two classes.
    """
    names = tuple(classes)
    if predictions.logits.ndim != 2 or predictions.logits.shape[1] != len(names):
        raise DataError(
            f"The predictions have shape {predictions.logits.shape}, the model has {len(names)} classes "
            f"({', '.join(names)}): run InferenceTask again with this model"
        )
    in_class = predictions.truth >= 0
    finite = np.isfinite(predictions.logits).all(axis=1)
    counts = {"in no class": int((~in_class).sum()), "not finite": int((in_class & ~finite).sum())}
    left_out = {reason: n for reason, n in counts.items() if n}
    for reason, n in left_out.items():
        logger.warning("%d of %d jets are left out of the evaluation: %s", n, len(predictions), reason)
    kept = predictions.take(in_class & finite)
    filled = [names[i] for i in np.unique(kept.truth)]
    if len(filled) < 2:
        raise DataError(
            f"Evaluation needs jets of at least two classes, the test jets hold "
            f"{'only ' + filled[0] if filled else 'none'} of {', '.join(names)}: add files with other classes"
        )
    return EvaluatedJets(probabilities(kept.logits), kept.truth, kept.process, kept.kinematics, left_out)


def process_masks(jets: EvaluatedJets, config: Config) -> dict[str, NDArray[np.bool_]]:
    """Per process of the config the mask of its jets inside its cuts; first, as `all`, all of them together."""
    masks = {}
    for index, name in enumerate(config.processes):
        mask = jets.process == index
        if name in config.process_cuts:
            mask &= inside(jets.kinematics, config.process_cuts[name])
        masks[name] = mask
    together = np.logical_or.reduce([*masks.values(), ~np.isin(jets.process, range(len(masks)))])
    combined = COMBINED if COMBINED not in masks else f"{COMBINED}_processes"
    return {combined: together, **masks}


def inside(kinematics: NDArray[np.float32], cuts: ProcessCuts) -> NDArray[np.bool_]:
    """Jets [N] with (pt, eta) inside the cuts, edges included."""
    pt, eta = kinematics.T
    mask = np.ones(len(pt), dtype=bool)
    for values, low, high in ((pt, cuts.pt_min, cuts.pt_max), (eta, cuts.eta_min, cuts.eta_max)):
        if low is not None:
            mask &= values >= low
        if high is not None:
            mask &= values <= high
    return mask
