"""Toy AK8 jets with the branches of the public JetClass files."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bhive_mltf.testing.random_jets import Axes, Candidates, spectrum, wrapped
from bhive_mltf.testing.root_files import Jets

TREE = "tree"
LABELS = (
    "label_QCD", "label_Hbb", "label_Hcc", "label_Hgg", "label_H4q",
    "label_Hqql", "label_Zqq", "label_Wqq", "label_Tbqq", "label_Tbl",
)  # fmt: skip
PROCESSES = dict(
    zip(
        LABELS,
        ("ZJetsToNuNu", "HToBB", "HToCC", "HToGG", "HToWW4Q", "HToWW2Q1L", "ZToQQ", "WToQQ", "TTBar", "TTBarLep"),
        strict=True,
    )
)
_TYPES = {"label_QCD": np.float32, **dict.fromkeys(LABELS[1:6], np.bool_), **dict.fromkeys(LABELS[6:], np.int32)}
# Per label: mass (GeV), prongs, displacement of the tracks, charged lepton.
_MASS = np.array([45.0, 120.0, 122.0, 120.0, 118.0, 100.0, 90.0, 80.0, 170.0, 140.0])
_PRONGS = np.array([1, 2, 2, 2, 4, 3, 2, 2, 3, 2])
_DISPLACEMENT = np.array([0.03, 1.0, 0.4, 0.05, 0.1, 0.1, 0.15, 0.1, 0.6, 0.8])
_LEPTON = np.array([0, 0, 0, 0, 0, 1, 0, 0, 0, 1])


def jetclass_jets(n_jets: int, seed: int, label: str = "label_QCD") -> Jets:
    """Toy jets of one label: mass, prongs, displaced tracks and leptons tell the labels apart."""
    kind = LABELS.index(label)
    rng = np.random.default_rng([seed, n_jets, kind])
    pt = spectrum(rng, n_jets, 500.0, 1000.0, 3.0)
    eta = rng.uniform(-2, 2, n_jets).astype(np.float32)
    phi = wrapped(rng.uniform(-np.pi, np.pi, n_jets))
    mass = np.abs(rng.normal(_MASS[kind], 0.12 * _MASS[kind], n_jets)) + (
        rng.exponential(30, n_jets) if not kind else 0
    )
    c = Candidates(rng, np.full(n_jets, 45.0 if kind != 3 else 60.0), 3, 160)
    particles = _particles(c, kind, Axes(pt, eta, phi), mass)
    energy = c.total(particles["part_energy"])
    prongs = _PRONGS[kind]
    tau = [np.abs(rng.normal(0.25 * min(1.0, prongs / (i + 1)), 0.03, n_jets)).astype(np.float32) for i in range(4)]
    resonance = np.float32(kind > 0)
    scalars: dict[str, NDArray[Any]] = {
        **{name: np.full(n_jets, name == label).astype(_TYPES[name]) for name in LABELS},
        "jet_pt": pt,
        "jet_eta": eta,
        "jet_phi": phi,
        "jet_energy": energy,
        "jet_nparticles": c.counts.astype(np.float32),
        "jet_sdmass": mass.astype(np.float32),
        **{f"jet_tau{i + 1}": tau[i] for i in range(4)},
        "aux_genpart_eta": eta * resonance,
        "aux_genpart_phi": phi * resonance,
        "aux_genpart_pid": np.full(n_jets, 25 * resonance, np.float32),
        "aux_genpart_pt": pt * resonance,
        "aux_truth_match": np.full(n_jets, kind, np.float32),
    }
    return Jets(scalars, {"n_part": (c.counts, particles)})


def _particles(c: Candidates, kind: int, axes: Axes, mass: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Particles around as many axes as the label has prongs, by falling pt."""
    prongs = int(_PRONGS[kind])
    axis = c.rng.integers(0, prongs, len(c))
    angle = 2 * np.pi * axis / prongs + c.of(c.rng.uniform(0, 2 * np.pi, len(axes.pt)))
    radius = c.of(np.clip(mass / axes.pt, 0.02, 0.6)) * (prongs > 1)
    deta = (radius * np.cos(angle) + c.normal(0, 0.06)).astype(np.float32)
    dphi = (radius * np.sin(angle) + c.normal(0, 0.06)).astype(np.float32)
    fraction = c.exponential(1.0) + 0.005
    part_pt = (fraction / c.of(c.total(fraction)) * c.of(axes.pt)).astype(np.float32)
    order = c.sorted_by(part_pt)
    part_pt, deta, dphi = part_pt[order], deta[order], dphi[order]
    part_eta = c.of(axes.eta) + deta * np.where(c.of(axes.eta) < 0, -1, 1)
    part_phi = c.of(axes.phi) + dphi
    pz = part_pt * np.sinh(part_eta)
    types = _types(c, kind)
    charged = types["part_charge"] != 0
    displaced = c.any(0.4) * c.exponential(_DISPLACEMENT[kind])
    return {
        "part_px": (part_pt * np.cos(part_phi)).astype(np.float32),
        "part_py": (part_pt * np.sin(part_phi)).astype(np.float32),
        "part_pz": pz.astype(np.float32),
        "part_energy": np.sqrt(part_pt**2 + pz**2 + 0.02).astype(np.float32),
        "part_deta": deta,
        "part_dphi": dphi,
        "part_d0val": ((c.normal(0, 0.02) + displaced) * charged).astype(np.float32),
        "part_d0err": (c.uniform(0.01, 0.05) * charged).astype(np.float32),
        "part_dzval": ((c.normal(0, 0.03) + displaced) * charged).astype(np.float32),
        "part_dzerr": (c.uniform(0.01, 0.08) * charged).astype(np.float32),
        **types,
    }


def _types(c: Candidates, kind: int) -> dict[str, NDArray[Any]]:
    """Charge and kind of each particle; the first one is the lepton of leptonic labels."""
    types = c.rng.choice(5, len(c), p=[0.6, 0.12, 0.26, 0.01, 0.01])
    if _LEPTON[kind]:
        first = np.cumsum(c.counts) - c.counts
        types[first] = c.rng.choice([3, 4], len(first))
    names = ("isChargedHadron", "isNeutralHadron", "isPhoton", "isElectron", "isMuon")
    charge = np.where(np.isin(types, [0, 3, 4]), c.choice([-1, 1]), 0).astype(np.float32)
    return {"part_charge": charge, **{f"part_{name}": (types == i).astype(np.int32) for i, name in enumerate(names)}}
