"""Toy AK4 jets with the branches of trigger-level b-tagging ntuples."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.testing.random_jets import Axes, Candidates, spectrum, wrapped
from bhive_mltf.testing.root_files import Jets

TREE = "DeepJetNTupler/DeepJetvars"
FLAGS = ("isB", "isBB", "isGBB", "isLeptonicB", "isLeptonicB_C", "isC", "isCC", "isGCC", "isUD", "isS", "isG")
_DISPLACEMENT = np.array([1.0, 1.3, 1.2, 1.0, 1.0, 0.4, 0.5, 0.5, 0.0, 0.05, 0.05, 0.2, 0.2])
_PFLAV = np.array([5, 5, 5, 5, 5, 4, 4, 4, 1, 3, 21, 0, 0])
_TRACKS = (
    "frompv", "nlostinnerhits", "track_chi2", "track_qual", "etarel", "pperp_ratio", "ppara_ratio", "trackjet_dist",
    "trackjet_decayL", "npixhits", "nstriphits",
)  # fmt: skip


def hlt_jets(n_jets: int, seed: int, process: str = "TT") -> Jets:
    """Toy jets; the kinds are those of `FLAGS`, then taus of positive and negative charge."""
    rng = np.random.default_rng([seed, n_jets, *process.encode()])
    kind = rng.integers(0, len(FLAGS) + 2, n_jets)
    tau = kind >= len(FLAGS)
    pt = spectrum(rng, n_jets, 15.0, 900.0, 2.0)
    eta = np.clip(rng.normal(0, 1.2, n_jets), -2.49, 2.49).astype(np.float32)
    phi = wrapped(rng.uniform(-np.pi, np.pi, n_jets))
    heavy = np.select([kind < 5, kind < 8], [5, 4], 0).astype(np.int32)
    parton = np.where(tau, 0, _PFLAV[kind]).astype(np.int32)
    zero = np.zeros(n_jets, np.int32)
    fractions = rng.dirichlet([6, 2, 2, 0.1, 0.1], n_jets).astype(np.float32)
    axes = Axes(pt, eta, phi)
    c, candidates = _candidates(rng, kind, axes)
    scalars: dict[str, NDArray[Any]] = {
        "jet_pt": pt,
        "jet_eta": eta,
        "jet_phi": phi,
        "jet_energy": (pt * np.cosh(eta)).astype(np.float32),
        "jet_pt_corr": (pt * 1.05).astype(np.float32),
        "jet_mass": (pt * 0.1).astype(np.float32),
        "jet_mass_corr": (pt * 0.105).astype(np.float32),
        **{f"jet_{name}": fractions[:, i] for i, name in enumerate(("chf", "nhf", "phf", "elf", "muf"))},
        "jet_ncand": c.counts.astype(np.float32),
        "jet_genmatch_lep_vis_pt": np.where(tau, pt, 0).astype(np.float32),
        "jet_genmatch_lep_pt": np.where(tau, pt * 1.3, 0).astype(np.float32),
        "jet_genmatch_wnu_pt": (pt * 1.02).astype(np.float32),
        "jet_genmatch_pt": pt.copy(),
        "jet_muflav": zero,
        "jet_elflav": zero,
        "jet_tauflav": tau.astype(np.int32),
        "jet_taucharge": np.where(kind == len(FLAGS), 1, np.where(tau, -1, 0)).astype(np.int32),
        "jet_genmatch_hflav": heavy,
        "jet_hflav": heavy,
        "jet_genmatch_pflav": parton,
        "jet_pflav": parton,
        **{name: (kind == i).astype(np.int32) for i, name in enumerate(FLAGS)},
    }
    vertices, found = _vertices(rng, kind, axes)
    return Jets(scalars, {"jet_npfcand": (c.counts, candidates), "jet_nsv": (vertices.counts, found)})


def _near(c: Candidates, prefix: str, axes: Axes) -> dict[str, NDArray[Any]]:
    """Kinematics of candidates near their jets."""
    part_pt = (c.of(axes.pt) * c.uniform(0.01, 0.3)).astype(np.float32)
    deta, dphi = c.normal(0, 0.12), c.normal(0, 0.12)
    part_eta = (c.of(axes.eta) + deta).astype(np.float32)
    energy = (part_pt * np.cosh(part_eta)).astype(np.float32)
    return {
        f"{prefix}_deta": deta,
        f"{prefix}_dphi": dphi,
        f"{prefix}_pt_log": np.log(part_pt),
        f"{prefix}_pt": part_pt,
        f"{prefix}_eta": part_eta,
        f"{prefix}_phi": wrapped(c.of(axes.phi) + dphi),
        f"{prefix}_energy": energy,
    }


def _candidates(rng: np.random.Generator, kind: NDArray[Any], axes: Axes) -> tuple[Candidates, dict[str, NDArray[Any]]]:
    c = Candidates(rng, np.where(kind >= len(FLAGS), 6.0, 8 + np.log(axes.pt)), 1, 60)
    prefix = "jet_pfcand"
    near = _near(c, prefix, axes)
    significance = (c.normal() + c.any(0.5) * c.exponential(8.0) * c.of(_DISPLACEMENT[kind])).astype(np.float32)
    return c, {
        **near,
        f"{prefix}_energy_log": np.log(near[f"{prefix}_energy"]),
        f"{prefix}_charge": np.where(c.any(0.7), c.of(np.where(kind == len(FLAGS) + 1, -1, 1)), 0).astype(np.float32),
        **{f"{prefix}_{name}": c.uniform(0, 5).round(1) for name in _TRACKS},
        f"{prefix}_dz": c.normal(0, 0.02),
        f"{prefix}_dzsig": c.normal(),
        f"{prefix}_dxy": (significance * 0.002).astype(np.float32),
        f"{prefix}_dxysig": significance,
        f"{prefix}_trackjet_d3d": (significance * 0.0025).astype(np.float32),
        f"{prefix}_trackjet_d3dsig": (significance * 1.1).astype(np.float32),
    }


def _vertices(rng: np.random.Generator, kind: NDArray[Any], axes: Axes) -> tuple[Candidates, dict[str, NDArray[Any]]]:
    displacement = _DISPLACEMENT[kind]
    c = Candidates(rng, 0.05 + displacement, 0, 6)
    dxy = c.exponential(0.05 + 0.4 * c.of(displacement))
    near = _near(c, "jet_sv", axes)
    return c, {
        **near,
        "jet_sv_mass": (0.4 + c.exponential(0.3 + 1.6 * c.of(displacement))).astype(np.float32),
        "jet_sv_ntrack": c.choice([2, 3, 4]),
        "jet_sv_chi2": c.exponential(2.0),
        "jet_sv_dxy": dxy,
        "jet_sv_dxysig": (dxy * 80).astype(np.float32),
        "jet_sv_d3d": (dxy * 1.5).astype(np.float32),
        "jet_sv_d3dsig": (dxy * 90).astype(np.float32),
    }
