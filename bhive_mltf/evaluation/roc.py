"""The directory of ROC curves: arrays, areas and figures per process and for all processes together."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.errors import DataError
from bhive_mltf.evaluation import figures
from bhive_mltf.evaluation.discriminators import Discriminator, discriminators, safe_name
from bhive_mltf.evaluation.predictions import Predictions
from bhive_mltf.evaluation.selection import COMBINED, EvaluatedJets, process_masks, select_jets
from bhive_mltf.evaluation.statistics import WorkingPoint, area, roc_curve, working_point
from bhive_mltf.files import atomic
from bhive_mltf.files.records import Record

if TYPE_CHECKING:
    from bhive_mltf.config import Config

logger = logging.getLogger(__name__)

MISTAG_RATES = (0.1, 0.01, 0.001)


@dataclass(frozen=True)
class Roc(figures.Drawn):
    """One discriminator on the jets of one process (or of all)."""

    process: str = COMBINED
    efficiencies: tuple[WorkingPoint, ...] = ()

    def summary(self) -> dict[str, Any]:
        """Its entry in auc.json."""
        return {
            "auc": self.area.auc,
            "error": None if np.isnan(self.area.error) else self.area.error,
            "n_signal": self.curve.n_signal,
            "n_background": self.curve.n_background,
            "efficiency_at_mistag": {f"{point.wp:g}": point.row() for point in self.efficiencies},
        }


@dataclass(frozen=True)
class RocSummary:
    """What a ROC directory holds.

    auc : process -> label -> the entry of auc.json.
    left_out : "jets" -> reason -> number; process -> label -> why there is no curve.
    figures : names of the PNG files in the directory, overviews first.
    """

    auc: Mapping[str, Mapping[str, Mapping[str, Any]]]
    left_out: Mapping[str, Mapping[str, Any]]
    figures: tuple[str, ...] = field(default=())

    def table(self) -> str:
        """AUCs, and which curves there are none of, as lines of text that are narrow enough for any terminal."""
        lines = ["", "AUC"]
        left_out = {process: labels for process, labels in self.left_out.items() if process != "jets"}
        for process in dict.fromkeys((*self.auc, *left_out)):
            found, missing = self.auc.get(process, {}), ", ".join(left_out.get(process, ()))
            lines.append(f"  {process}")
            for label, entry in found.items():
                error = "" if entry["error"] is None else f" +- {entry['error']:.4f}"
                lines.append(f"    {label:<22} {entry['auc']:.4f}{error}")
            if missing:
                text = f"no curve without signal and background jets: {missing}"
                lines += textwrap.wrap(text, 72, initial_indent="    ", subsequent_indent="      ")
        return "\n".join(lines)


def make_roc_directory(
    predictions: Predictions,
    classes: Iterable[str],
    config: Config,
    directory: str | Path,
    *,
    record: Record | None = None,
) -> RocSummary:
    """Write all ROC curves of a model into `directory`, which appears complete or not at all.

    Per process of the config (those of its jets inside its cuts) and for all of them together as `all`:
    `roc_<process>_<label>.npy` [3,P] (mistag rate, efficiency, threshold), `.png`, `.pdf`, overview figures,
    `AUC_<process>_all.npy` (label -> AUC, pickled as upstream); `auc.json` with uncertainties, `left_out.json`.
    A discriminator without jets of both kinds is left out and named there. `record`, what the curves were made from,
    is kept beside them.

    Raises
    ------
    DataError
        Fewer than two classes have jets, or no discriminator has jets of both kinds.
    """
    names = tuple(classes)
    jets = select_jets(predictions, names)
    left_out: dict[str, dict[str, Any]] = {"jets": dict(jets.left_out)}
    curves = list(_curves(jets, discriminators(names), process_masks(jets, config), left_out))
    if not curves:
        raise DataError(
            f"No ROC curve can be made: no discriminator of {', '.join(names)} has signal and background among the "
            f"{len(jets)} test jets inside the cuts; the reasons are {left_out}"
        )
    with atomic.replace_directory(directory) as temporary:
        made = tuple(_write(temporary, curves, config))
        auc = {
            process: {roc.discriminator.label: roc.summary() for roc in of}
            for process, of in _grouped(curves, attrgetter("process")).items()
        }
        atomic.write_json(temporary / "auc.json", auc)
        atomic.write_json(temporary / "left_out.json", left_out)
        if record is not None:
            record.write(temporary)
    return RocSummary(auc, left_out, made)


def _curves(
    jets: EvaluatedJets,
    wanted: Iterable[Discriminator],
    masks: Mapping[str, NDArray[np.bool_]],
    left_out: dict[str, dict[str, Any]],
) -> Iterator[Roc]:
    wanted = tuple(wanted)
    for process, mask in masks.items():
        probabilities, truth = jets.probabilities[mask], jets.truth[mask]
        for discriminator in wanted:
            signal, background = discriminator.split(probabilities, truth)
            if len(signal) and len(background):
                yield Roc(
                    discriminator,
                    roc_curve(signal, background),
                    area(signal, background),
                    process=process,
                    efficiencies=tuple(working_point(signal, background, rate) for rate in MISTAG_RATES),
                )
            else:
                reason = f"{len(signal)} signal and {len(background)} background jets"
                left_out.setdefault(process, {})[discriminator.label] = reason
                logger.info("no ROC curve of %s for %s: %s", discriminator.label, process, reason)


def _grouped(curves: Iterable[Roc], key: Callable[[Roc], str]) -> dict[str, list[Roc]]:
    """Curves by a key, whatever their order; keys as they first come."""
    found: dict[str, list[Roc]] = {}
    for roc in curves:
        found.setdefault(key(roc), []).append(roc)
    return found


def _write(directory: Path, curves: Iterable[Roc], config: Config) -> Iterator[str]:
    """Arrays and figures of all processes; yields the names of the PNG files."""
    singles = []
    for process, rocs in _grouped(curves, attrgetter("process")).items():
        stem, caption = safe_name(process), figures.caption(process, config.process_cuts.get(process))
        areas = {roc.discriminator.label: roc.area.auc for roc in rocs}
        np.save(directory / f"AUC_{stem}_all.npy", areas, allow_pickle=True)  # type: ignore[arg-type]
        for family, members in _grouped(rocs, attrgetter("discriminator.family")).items():
            yield figures.save(figures.roc_figure(members, caption), directory, f"roc_{stem}_overview_{family}")
        for roc in rocs:
            name = f"roc_{stem}_{roc.discriminator.label}"
            np.save(directory / f"{name}.npy", roc.curve.array())
            singles.append(figures.save(figures.roc_figure([roc], caption), directory, name))
    yield from singles
