"""Toy AK4 jets with the branches of offline b-tagging ntuples."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.testing.random_jets import Axes, Candidates, spectrum, wrapped
from bhive_mltf.testing.root_files import Jets

TREE = "deepntuplizer/tree"
LABELS = ("isB", "isBB", "isGBB", "isLeptonicB", "isLeptonicB_C", "isC", "isCC", "isGCC", "isU", "isD", "isS", "isG")
_FRACTIONS = {
    "TT": (0.30, 0.03, 0.03, 0.08, 0.05, 0.14, 0.02, 0.03, 0.08, 0.07, 0.05, 0.12),
    "QCD": (0.09, 0.02, 0.05, 0.03, 0.02, 0.09, 0.02, 0.06, 0.14, 0.12, 0.08, 0.28),
}
# Displacement of each label's tracks, and mean number of vertices.
_DISPLACEMENT = np.array([1.0, 1.3, 1.2, 1.0, 1.0, 0.4, 0.5, 0.5, 0.0, 0.0, 0.05, 0.05])
_VERTICES = np.array([1.1, 2.0, 1.8, 1.0, 1.1, 0.5, 0.8, 0.8, 0.03, 0.03, 0.06, 0.08])


def btag_jets(n_jets: int, seed: int, process: str = "TT") -> Jets:
    """Toy jets of a process (`TT`; anything else is like QCD).

    Labels are known from the start: the tracks of b jets (and less those of c jets) are displaced, and vertices are
    found in them, so that a small network separates the flavours.
    """
    rng = np.random.default_rng([seed, n_jets, *process.encode()])
    fractions = np.array(_FRACTIONS.get(process, _FRACTIONS["QCD"]))
    flavour = rng.choice(len(LABELS), n_jets, p=fractions / fractions.sum())
    pt = spectrum(rng, n_jets, 20.0, 900.0, 1.8 if process == "TT" else 2.5)
    eta = np.clip(rng.normal(0, 1.2, n_jets), -2.49, 2.49).astype(np.float32)
    phi = wrapped(rng.uniform(-np.pi, np.pi, n_jets))
    axes = Axes(pt, eta, phi)
    charged, tracks = _charged(rng, flavour, axes)
    neutral, neutrals = _neutral(rng, flavour, axes)
    vertices, found = _vertices(rng, flavour, axes)
    energy = (pt * np.cosh(eta) * rng.uniform(1.0, 1.05, n_jets)).astype(np.float32)
    scalars: dict[str, NDArray[Any]] = {
        "jet_pt": pt,
        "jet_eta": eta,
        "jet_phi": phi,
        "jet_mass": (0.12 * pt * rng.uniform(0.5, 1.5, n_jets)).astype(np.float32),
        "jet_energy": energy,
        "npv": (rng.poisson(35, n_jets) + 1).astype(np.float32),
        "nCpfcand": charged.counts.astype(np.float32),
        "nNpfcand": neutral.counts.astype(np.float32),
        "nsv": vertices.counts.astype(np.float32),
        **_tag_variables(charged, tracks, vertices, pt),
        **{label: (flavour == i).astype(np.int32) for i, label in enumerate(LABELS)},
        "isUD": np.isin(flavour, [8, 9]).astype(np.int32),
        "isUndefined": np.zeros(n_jets, np.int32),
        "jet_hflav": np.select([flavour < 5, flavour < 8], [5, 4], 0).astype(np.int32),
        "jet_pflav": np.array([5, 5, 21, 5, 5, 4, 4, 21, 2, 1, 3, 21], np.int32)[flavour],
        "event_no": np.arange(n_jets, dtype=np.int32) // 2,
        "jet_no": np.arange(n_jets, dtype=np.int32) % 2,
    }
    return Jets(
        scalars,
        {
            "n_Cpfcand": (charged.counts, tracks),
            "n_Npfcand": (neutral.counts, neutrals),
            "n_sv": (vertices.counts, found),
        },
    )


def _kinematics(c: Candidates, prefix: str, fraction: NDArray[Any], axes: Axes) -> dict[str, NDArray[Any]]:
    """pt, eta, phi and energy of candidates near their jets."""
    part_pt = (fraction * c.of(axes.pt)).astype(np.float32)
    part_eta = (c.of(axes.eta) + c.normal(0, 0.12)).astype(np.float32)
    return {
        f"{prefix}_pt": part_pt,
        f"{prefix}_eta": part_eta,
        f"{prefix}_phi": wrapped(c.of(axes.phi) + c.normal(0, 0.12)),
        f"{prefix}_e": (part_pt * np.cosh(part_eta) * 1.01).astype(np.float32),
        f"{prefix}_ptrel": (fraction - 1).astype(np.float32),
    }


def _charged(rng: np.random.Generator, flavour: NDArray[Any], axes: Axes) -> tuple[Candidates, dict[str, NDArray[Any]]]:
    c = Candidates(rng, 4 + 1.5 * np.log(axes.pt), 0, 30)
    displaced = c.any(0.5) * c.of(_DISPLACEMENT[flavour])
    sip = (c.normal(0, 1.2) + displaced * c.exponential(8.0)).astype(np.float32)
    value = (sip * 0.002 * (1 + c.exponential(0.3))).astype(np.float32)
    fraction = np.clip(c.exponential(1.0) / np.maximum(c.of(c.counts), 1), 0.001, 1.0)
    distance = np.abs(c.normal(0, 0.1))
    values = {
        **_kinematics(c, "Cpfcan", fraction, axes),
        "Cpfcan_drminsv": np.clip(-0.4 + distance + 0.3 * (displaced == 0), -0.4, 0).astype(np.float32),
        "Cpfcan_puppiw": c.choice([1.0, 0.5], [0.95, 0.05]),
        "Cpfcan_VTX_ass": c.choice([7, 6, 5, 1, 0], [0.7, 0.1, 0.1, 0.05, 0.05]),
        "Cpfcan_chi2": c.exponential(1.5),
        "Cpfcan_quality": c.choice([5, 1], [0.9, 0.1]),
        "Cpfcan_BtagPf_trackEtaRel": (2.0 + c.exponential(0.8)).astype(np.float32),
        "Cpfcan_BtagPf_trackPtRel": c.exponential(0.6 + 0.4 * displaced),
        "Cpfcan_BtagPf_trackPPar": (c.of(axes.pt) * fraction).astype(np.float32),
        "Cpfcan_BtagPf_trackDeltaR": distance,
        "Cpfcan_BtagPf_trackPParRatio": c.uniform(0.9, 1.0),
        "Cpfcan_BtagPf_trackSip2dVal": value,
        "Cpfcan_BtagPf_trackSip2dSig": sip,
        "Cpfcan_BtagPf_trackSip3dVal": (value * 1.2).astype(np.float32),
        "Cpfcan_BtagPf_trackSip3dSig": (sip * 1.1 + c.normal(0, 0.3)).astype(np.float32),
        "Cpfcan_BtagPf_trackJetDistVal": -c.exponential(0.01),
    }
    order = c.sorted_by(sip)
    return c, {name: column[order] for name, column in values.items()}


def _neutral(rng: np.random.Generator, flavour: NDArray[Any], axes: Axes) -> tuple[Candidates, dict[str, NDArray[Any]]]:
    c = Candidates(rng, 3 + np.log(axes.pt) + 1.0 * (flavour == 11), 0, 30)
    fraction = np.clip(c.exponential(0.5) / np.maximum(c.of(c.counts), 1), 0.001, 1.0)
    return c, {
        **_kinematics(c, "Npfcan", fraction, axes),
        "Npfcan_deltaR": (np.abs(c.normal(0, 0.15)) - 0.6).astype(np.float32),
        "Npfcan_isGamma": c.choice([1, 0], [0.8, 0.2]),
        "Npfcan_HadFrac": c.choice([0, 1], [0.8, 0.2]),
        "Npfcan_drminsv": np.clip(c.normal(-0.2, 0.1), -0.4, 0).astype(np.float32),
        "Npfcan_puppiw": c.uniform(0.2, 1.0),
    }


def _vertices(
    rng: np.random.Generator, flavour: NDArray[Any], axes: Axes
) -> tuple[Candidates, dict[str, NDArray[Any]]]:
    c = Candidates(rng, _VERTICES[flavour], 0, 6)
    heavy = c.of(_DISPLACEMENT[flavour])
    dxy = c.exponential(0.05 + 0.4 * heavy)
    significance = np.minimum(dxy * 80, 800).astype(np.float32)
    ntracks = 2 + c.rng.poisson(0.3 + 1.5 * heavy)
    chi2 = c.exponential(2.0)
    values = {
        **_kinematics(c, "sv", c.uniform(0.05, 0.5), axes),
        "sv_etarel": (c.normal(0, 0.1) - 0.5).astype(np.float32),
        "sv_phirel": (c.normal(0, 0.1) - 0.5).astype(np.float32),
        "sv_deltaR": (np.abs(c.normal(0, 0.1)) - 0.5).astype(np.float32),
        "sv_mass": (0.4 + c.exponential(0.3 + 1.6 * heavy)).astype(np.float32),
        "sv_ntracks": ntracks.astype(np.float32),
        "sv_chi2": chi2,
        "sv_ndf": (2 * ntracks - 3).astype(np.float32),
        "sv_normchi2": (chi2 / (2 * ntracks - 3)).astype(np.float32),
        "sv_dxy": dxy,
        "sv_dxyerr": (dxy / np.maximum(significance, 1e-3) - 2).astype(np.float32),
        "sv_dxysig": significance,
        "sv_d3d": (dxy * 1.5).astype(np.float32),
        "sv_d3derr": (dxy * 1.5 / np.maximum(significance, 1e-3) - 2).astype(np.float32),
        "sv_d3dsig": np.minimum(significance * 1.1, 800).astype(np.float32),
        "sv_costhetasvpv": (1 - c.exponential(0.002)).astype(np.float32),
        "sv_enratio": c.uniform(0.1, 0.8),
    }
    order = c.sorted_by(values["sv_dxysig"])
    return c, {name: column[order] for name, column in values.items() if name != "sv_ptrel"}


def _tag_variables(
    charged: Candidates, tracks: dict[str, NDArray[Any]], vertices: Candidates, pt: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    """Variables of the jet, with the usual defaults where there are no tracks."""
    some = charged.counts > 0
    ratio = charged.total(tracks["Cpfcan_pt"]) / pt
    high = charged.largest(tracks["Cpfcan_BtagPf_trackSip2dSig"], -1)
    above = np.where(high > 2, high, np.float32(-1)).astype(np.float32)
    prefix = "TagVarCSV_"
    return {
        f"{prefix}trackSumJetEtRatio": np.where(some, ratio, -999).astype(np.float32),
        f"{prefix}trackSumJetDeltaR": np.where(some, 0.1 * ratio, -999).astype(np.float32),
        f"{prefix}vertexCategory": np.where(vertices.counts > 0, 0, 2).astype(np.float32),
        f"{prefix}trackSip2dValAboveCharm": np.where(above > 0, above * 0.002, -1).astype(np.float32),
        f"{prefix}trackSip2dSigAboveCharm": above,
        f"{prefix}trackSip3dValAboveCharm": np.where(above > 0, above * 0.0025, -1).astype(np.float32),
        f"{prefix}trackSip3dSigAboveCharm": np.where(above > 0, above * 1.1, -1).astype(np.float32),
        f"{prefix}jetNSelectedTracks": charged.counts.astype(np.float32),
        f"{prefix}jetNTracksEtaRel": (charged.counts // 2).astype(np.float32),
    }
