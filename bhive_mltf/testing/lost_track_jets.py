"""Toy AK4 jets with lost tracks, Cartesian momenta, hadronic taus and the particle jet's momentum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.testing.btag_jets import LABELS, btag_jets
from bhive_mltf.testing.random_jets import Candidates, wrapped
from bhive_mltf.testing.root_files import Jets

Columns = Mapping[str, NDArray[Any]]
TAU_LABELS = tuple(f"isTau{sign}{decay}_" for sign in "pm" for decay in ("1h0p", "1h1p", "1h2p", "3h0p", "3h1p"))
_TAU_FRACTION = 0.2
_UNMATCHED = 0.05
_TRACK = (
    "BtagPf_trackEtaRel", "BtagPf_trackPtRel", "BtagPf_trackPPar", "BtagPf_trackDeltaR", "BtagPf_trackPParRatio",
    "BtagPf_trackSip2dVal", "BtagPf_trackSip2dSig", "BtagPf_trackSip3dVal", "BtagPf_trackSip3dSig",
    "BtagPf_trackJetDistVal", "drminsv", "chi2", "dz",
)  # fmt: skip
_CHARGED = (
    "charge", "dz", "BtagPf_trackDecayLen", "HadFrac", "CaloFrac", "pdgID", "lostInnerHits", "numberOfPixelHits",
    "numberOfStripHits",
)  # fmt: skip


def lost_track_jets(n_jets: int, seed: int, process: str = "TT") -> Jets:
    """The jets of `btag_jets` with more branches; a fifth of them are taus instead.

    A few jets have no particle jet: its momenta are zero. The ratio of the others is near 1, above it for b jets.
    """
    jets = btag_jets(n_jets, seed, process)
    rng = np.random.default_rng([seed, n_jets, *process.encode(), 1])
    scalars = dict(jets.scalars)
    _relabel(rng, scalars)
    _match(rng, scalars)
    (n_charged, charged), (n_neutral, neutral), (n_found, vertices) = (
        jets.lists[name] for name in ("n_Cpfcand", "n_Npfcand", "n_sv")
    )
    return Jets(
        scalars,
        {
            "n_Cpfcand": (
                n_charged,
                {**charged, **_more_charged(rng, n_charged, charged), **_momenta("Cpfcan", charged)},
            ),
            "n_Npfcand": (n_neutral, {**neutral, **_more_neutral(rng, neutral), **_momenta("Npfcan", neutral)}),
            "n_sv": (n_found, {**vertices, **_momenta("sv", vertices)}),
            "n_LT": _lost_tracks(rng, scalars),
        },
    )


def _relabel(rng: np.random.Generator, scalars: dict[str, NDArray[Any]]) -> None:
    n_jets = len(scalars["jet_pt"])
    is_tau = rng.random(n_jets) < _TAU_FRACTION
    kind = rng.integers(0, len(TAU_LABELS), n_jets)
    for label in (*LABELS, "isUD"):
        scalars[label] = np.where(is_tau, 0, scalars[label]).astype(np.int32)
    for i, label in enumerate(TAU_LABELS):
        scalars[label] = (is_tau & (kind == i)).astype(np.int32)


def _match(rng: np.random.Generator, scalars: dict[str, NDArray[Any]]) -> None:
    pt = scalars["jet_pt"]
    there = rng.random(len(pt)) > _UNMATCHED
    visible = np.where(there, pt * rng.normal(1.0, 0.1, len(pt)).clip(0.5, 1.5), 0).astype(np.float32)
    full = (visible * (1 + 0.15 * scalars["isB"])).astype(np.float32)
    for prefix, values in (("jet_genmatch", visible), ("jet_genmatch_wnu", full)):
        scalars[f"{prefix}_pt"] = values
        scalars[f"{prefix}_eta"] = np.where(there, scalars["jet_eta"], 0).astype(np.float32)
        scalars[f"{prefix}_phi"] = np.where(there, scalars["jet_phi"], 0).astype(np.float32)
    scalars["gen_pt"], scalars["gen_pt_WithNu"] = visible.copy(), full.copy()


def _momenta(prefix: str, values: Columns) -> dict[str, NDArray[Any]]:
    pt, eta, phi = (values[f"{prefix}_{name}"] for name in ("pt", "eta", "phi"))
    momenta = {"px": pt * np.cos(phi), "py": pt * np.sin(phi), "pz": pt * np.sinh(eta)}
    return {f"{prefix}_{name}": component.astype(np.float32) for name, component in momenta.items()}


def _more_charged(rng: np.random.Generator, counts: NDArray[np.int64], values: Columns) -> dict[str, NDArray[Any]]:
    size = int(counts.sum())
    pt = values["Cpfcan_pt"]
    charge = rng.choice(np.array([-1, 1], np.float32), size)
    more = {f"Cpfcan_{name}": rng.random(size).astype(np.float32) for name in _CHARGED}
    return more | {
        "Cpfcan_charge": charge,
        "Cpfcan_qdotp": (charge * pt).astype(np.float32),
        "Cpfcan_qoverp": (charge / pt).astype(np.float32),
        "Cpfcan_distminsv2": np.abs(values["Cpfcan_drminsv"]),
        "Cpfcan_tau_signal": rng.integers(0, 2, size).astype(np.float32),
    }


def _more_neutral(rng: np.random.Generator, values: Columns) -> dict[str, NDArray[Any]]:
    size = len(values["Npfcan_pt"])
    more = {f"Npfcan_{name}": rng.normal(0, 0.1, size).astype(np.float32) for name in ("etarel", "phirel")}
    return more | {"Npfcan_tau_signal": rng.integers(0, 2, size).astype(np.float32)}


def _lost_tracks(
    rng: np.random.Generator, scalars: dict[str, NDArray[Any]]
) -> tuple[NDArray[np.int64], dict[str, NDArray[Any]]]:
    c = Candidates(rng, np.full(len(scalars["jet_pt"]), 1.5), 0, 8)
    pt = (c.of(scalars["jet_pt"]) * c.uniform(0.005, 0.1)).astype(np.float32)
    eta = (c.of(scalars["jet_eta"]) + c.normal(0, 0.12)).astype(np.float32)
    phi = wrapped(c.of(scalars["jet_phi"]) + c.normal(0, 0.12))
    values = {f"LT_{name}": c.normal(0, 1.0) for name in _TRACK}
    values |= {f"LT_{name}": c.uniform() for name in ("puppiw", "quality", *_CHARGED)}
    values |= {"LT_pt": pt, "LT_eta": eta, "LT_phi": phi, "LT_e": (pt * np.cosh(eta) * 1.01).astype(np.float32)}
    return c.counts, values | _momenta("LT", values)
