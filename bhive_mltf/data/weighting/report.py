"""What weighted sampling makes of each truth label: jets drawn, effective sample size, the bin that holds it back.

K: truth labels; P, E: bins in pt and eta.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from bhive_mltf.data.weighting.balanced import region_sums
from bhive_mltf.data.weighting.grid import Grid
from bhive_mltf.errors import CorruptFileError
from bhive_mltf.files import atomic

FILE_NAME = "weighting.json"
# A label is reported when one bin holds it back by this factor, or when this share of it is never drawn.
HELD_BACK = 5.0
NEVER_DRAWN = 0.01
_SHOWN = 3
_IN_TABLE = 1.5


@dataclass(frozen=True)
class Limit:
    """The bin (or merged bins) with the fewest jets of a label per jet of the reference: it sets the label's yield.

    pt, eta : its edges (GeV; pseudorapidity).
    jets, reference_jets : what it holds.
    factor : yield that the median bin of the reference's spectrum would allow, over the yield that this one allows.
    """

    pt: tuple[float, float]
    eta: tuple[float, float]
    jets: int
    reference_jets: int
    factor: float

    def __str__(self) -> str:
        (pt_low, pt_high), (eta_low, eta_high) = self.pt, self.eta
        return f"{pt_low:g} < pt < {pt_high:g} GeV, {eta_low:g} < eta < {eta_high:g}"


@dataclass(frozen=True)
class LabelReport:
    """One truth label.

    jets : in the set.
    drawn : expected jets of an epoch with weighted sampling, sum w.
    n_eff : effective sample size of the weighted jets, (sum w)^2 / sum w^2 (Kish).
    never_drawn : jets with weight 0.
    shape_missing : share of the reference's spectrum in bins without any jet of the label.
    bins : merged bins, those of the grid if none is merged.
    limit : None where all bins allow the same yield, or where it is not a bin that sets the yield.
    """

    label: str
    jets: int
    drawn: float
    n_eff: float
    never_drawn: int
    shape_missing: float
    bins: int
    limit: Limit | None


@dataclass(frozen=True)
class WeightingReport:
    """How a training set is weighted, and what comes of it.

    weighting : the method.
    reference : label whose shape the others get.
    settings : the method's numbers.
    """

    weighting: str
    reference: str
    settings: dict[str, float]
    grid: Grid
    labels: tuple[LabelReport, ...]

    def warnings(self) -> list[str]:
        """A sentence per kind of loss."""
        return [*self._held_back(), *self._never_drawn()]

    def table(self) -> str:
        """The labels as lines of text."""
        width = max(5, *(len(each.label) for each in self.labels))
        lines = [
            f"weighting {self.weighting}, reference {self.reference}",
            f"  {'label':<{width}}  {'jets':>9}  {'drawn':>9}  {'n_eff':>9}  held back",
        ]
        for each in self.labels:
            limit = each.limit
            shown = limit if limit and limit.factor >= _IN_TABLE else None
            reason = f"x{shown.factor:.1f} by {shown} ({shown.jets} jets)" if shown else ""
            line = f"  {each.label:<{width}}  {each.jets:>9}  {each.drawn:>9.0f}  {each.n_eff:>9.0f}  {reason}"
            lines.append(line.rstrip())
        return "\n".join(lines)

    def write(self, directory: Path, weights: NDArray[np.float64]) -> None:
        """Write `weighting.json`: this report, and the weights [K,P,E]."""
        value: dict[str, Any] = dataclasses.asdict(self) | {"weights": weights.tolist()}
        atomic.write_text(directory / FILE_NAME, json.dumps(value, sort_keys=True) + "\n")

    @classmethod
    def read(cls, directory: Path) -> tuple[WeightingReport, NDArray[np.float64]]:
        """The report in a directory, and the weights [K,P,E].

        Raises
        ------
        CorruptFileError
            The file cannot be read.
        """
        path = directory / FILE_NAME
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            weights = np.array(value.pop("weights"), np.float64)
            return _ADAPTER.validate_python(value), weights
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            raise CorruptFileError(f"'{path}' is not a report of weights ({error}): build the set again") from error

    def _held_back(self) -> Iterator[str]:
        found = [(each, each.limit) for each in self.labels if each.limit and each.limit.factor >= HELD_BACK]
        found.sort(key=lambda pair: -pair[1].factor)
        if not found:
            return
        texts = [
            f"{each.label} by {limit} with {limit.jets} of its {each.jets} jets: {each.drawn:.0f} are drawn per epoch, "
            f"{limit.factor:.0f} times fewer than the median bin allows"
            for each, limit in found[:_SHOWN]
        ]
        more = f"; and {len(found) - _SHOWN} more in {FILE_NAME}" if len(found) > _SHOWN else ""
        remedy = "widen the bins" + ("" if self.weighting == "balanced" else ", or use --weighting balanced")
        yield f"labels held back by one bin: {'; '.join(texts)}{more}: {remedy}"

    def _never_drawn(self) -> Iterator[str]:
        # Labels of which no jet at all is drawn have a sentence of their own, in `check_labels`.
        found = [each for each in self.labels if NEVER_DRAWN * each.jets < each.never_drawn < each.jets]
        if found:
            texts = ", ".join(f"{each.label} {each.never_drawn} of {each.jets}" for each in found)
            yield (
                f"jets in bins without any of the reference {self.reference} are never drawn: {texts}: widen the bins, "
                "or use --weighting balanced"
            )


_ADAPTER: TypeAdapter[WeightingReport] = TypeAdapter(WeightingReport)


def label_report(
    label: str,
    counts: NDArray[np.int64],
    weights: NDArray[np.float64],
    *,
    regions: NDArray[np.int64],
    target: NDArray[np.int64],
    grid: Grid,
) -> LabelReport:
    """What `weights` do to the jets `counts` of a label; jets with several labels count for each of them.

    Parameters
    ----------
    counts, weights, regions : [P,E]; `regions` numbers the merged bins.
    target : [P,E], jets of the reference.
    """
    drawn, squares = float((counts * weights).sum()), float((counts * weights**2).sum())
    jets, wanted = region_sums(counts, regions), region_sums(target, regions)
    shared = (jets > 0) & (wanted > 0)
    bound = bool(shared.any()) and float(weights[counts > 0].max()) > 1 - 1e-9
    return LabelReport(
        label=label,
        jets=int(counts.sum()),
        drawn=drawn,
        n_eff=drawn**2 / squares if squares else 0.0,
        never_drawn=int(counts[weights == 0].sum()),
        shape_missing=float(wanted[jets == 0].sum() / wanted.sum()),
        bins=int(regions.max()) + 1,
        limit=_limit(jets, wanted, shared, regions, grid) if bound else None,
    )


def _limit(
    jets: NDArray[np.int64],
    wanted: NDArray[np.int64],
    shared: NDArray[np.bool_],
    regions: NDArray[np.int64],
    grid: Grid,
) -> Limit | None:
    ratio = np.full(len(jets), np.inf)
    ratio[shared] = jets[shared] / wanted[shared]
    worst = int(np.argmin(ratio))
    factor = _weighted_median(ratio[shared], wanted[shared]) / float(ratio[worst])
    if factor <= 1 + 1e-9:
        return None
    pt, eta = np.nonzero(regions == worst)
    return Limit(
        pt=(grid.pt[int(pt.min())], grid.pt[int(pt.max()) + 1]),
        eta=(grid.eta[int(eta.min())], grid.eta[int(eta.max()) + 1]),
        jets=int(jets[worst]),
        reference_jets=int(wanted[worst]),
        factor=factor,
    )


def _weighted_median(values: NDArray[np.float64], weights: NDArray[np.int64]) -> float:
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])
