"""Working points: the cuts on a discriminator that reach given mistag rates, computed from all jets."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bhive_mltf.errors import DataError
from bhive_mltf.evaluation import figures
from bhive_mltf.evaluation.discriminators import FLAVOUR, VS_REFERENCE, Discriminator, discriminators
from bhive_mltf.evaluation.predictions import Predictions
from bhive_mltf.evaluation.selection import EvaluatedJets, select_jets
from bhive_mltf.evaluation.statistics import (
    Values,
    WorkingPoint,
    area,
    passing_fraction,
    roc_curve,
    working_point,
)
from bhive_mltf.files import atomic

logger = logging.getLogger(__name__)

MISTAG_RATES = (0.1, 0.05, 0.01, 0.005, 0.001)


@dataclass(frozen=True)
class WorkingPointSummary:
    """What a directory of working points holds: label of the discriminator -> working points; label -> reason."""

    points: Mapping[str, tuple[WorkingPoint, ...]]
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class _Measured(figures.Drawn):
    """A discriminator with its working points, and the values of the jets behind them."""

    signal: Values = field(kw_only=True)
    background: Values = field(kw_only=True)


def make_working_points(
    predictions: Predictions,
    classes: Iterable[str],
    directory: str | Path,
    *,
    mistag_rates: Sequence[float] = MISTAG_RATES,
) -> WorkingPointSummary:
    """Write the working points of a model into `directory`, all processes together as upstream.

    Flavour taggers: b against light jets (`bvsl`), c jets removed. Other class sets: each class against the reference,
    or against the rest. A working point that the jets do not allow is written with its reason and without numbers.

    Files: `wps_combined.csv` (the curve, upstream's columns; several discriminators add one with their label),
    `working_points.csv`, `working_points.json`, `working_point.png`, and `working_point.pdf` last.

    Raises
    ------
    DataError
        Fewer than two classes have jets, or no discriminator has jets of both kinds.
    """
    directory, names = Path(directory), tuple(classes)
    jets = select_jets(predictions, names)
    left_out: dict[str, str] = {}
    measured = [_measure(d, jets, mistag_rates, left_out) for d in _chosen(discriminators(names))]
    found = [m for m in measured if m is not None]
    if not found:
        raise DataError(f"No working point can be made, no discriminator has jets of both kinds: {left_out}")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "working_point.pdf").unlink(missing_ok=True)
    _write_curves(directory / "wps_combined.csv", found)
    _write_points(directory, found, {**left_out, **{k: str(n) for k, n in jets.left_out.items()}})
    figures.save(figures.roc_figure(found, "all processes"), directory, "working_point")
    return WorkingPointSummary({m.discriminator.label: m.points for m in found}, left_out)


def _chosen(available: Sequence[Discriminator]) -> list[Discriminator]:
    """The one of b against light; else each class against the reference; else the first family there is."""
    named = [d for d in available if d.label == "bvsl"]
    if not named and available[0].family == FLAVOUR:
        return list(available[:1])
    return named or [d for d in available if d.family == VS_REFERENCE] or list(available)


def _measure(
    discriminator: Discriminator, jets: EvaluatedJets, rates: Sequence[float], left_out: dict[str, str]
) -> _Measured | None:
    signal, background = discriminator.split(jets.probabilities, jets.truth)
    if not len(signal) or not len(background):
        left_out[discriminator.label] = f"{len(signal)} signal and {len(background)} background jets"
        return None
    points = tuple(working_point(signal, background, rate) for rate in rates)
    for point in points:
        if point.reason:
            logger.warning("no working point %s of %s: %s", point.wp, discriminator.label, point.reason)
    curve = roc_curve(signal, background)
    return _Measured(discriminator, curve, area(signal, background), points, signal=signal, background=background)


def _write_curves(path: Path, found: Sequence[_Measured]) -> None:
    efficiency_name = "b jet efficiency" if found[0].discriminator.signal_name == "b" else "signal efficiency"
    header = ["mistag rate", efficiency_name, "thresholds"] + ["discriminator"] * (len(found) > 1)
    rows: list[list[Any]] = []
    for m in found:
        # upstream's grid, and where the mistag rate is low the thresholds of the ROC curve
        finite = m.curve.threshold[np.isfinite(m.curve.threshold)]
        thresholds = np.unique(np.concatenate([np.linspace(0.0, 1.0, 201), finite]))
        columns = (passing_fraction(m.background, thresholds), passing_fraction(m.signal, thresholds), thresholds)
        label = [m.discriminator.label] * (len(found) > 1)
        rows += [[*map(float, values), *label] for values in zip(*columns, strict=True)]
    _write_csv(path, header, rows)


def _write_points(directory: Path, found: Sequence[_Measured], left_out: Mapping[str, str]) -> None:
    entries = [{"discriminator": m.discriminator.label, **point.row()} for m in found for point in m.points]
    _write_csv(directory / "working_points.csv", list(entries[0]), [list(entry.values()) for entry in entries])
    atomic.write_json(directory / "working_points.json", {"working_points": entries, "left_out": left_out})


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with atomic.replace_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
