"""Four-momenta and what two of them say of each other.

Axes: P pairs; the last axis of a momentum is (px, py, pz, E), in GeV. Energies in pair features too.
Formulas: H. Qu, C. Li, S. Qian, "Particle Transformer for Jet Tagging", arXiv:2202.03772, section 4.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

TINY = 1e-8
"""Below this nothing is resolved: arguments of logarithms are bounded there."""


class PairKinematics(NamedTuple):
    """Of each pair: kT = min(pT) dR, z = min(pT) / sum of pT, dR (in rapidity), m2 = squared mass; each [P]."""

    kt: Tensor
    z: Tensor
    delta_r: Tensor
    mass2: Tensor


def cartesian(vectors: Tensor, kind: str) -> Tensor:
    """Four-vectors [...,4] of a kind as (px, py, pz, E).

    kind : "pxpypze" (nothing to do) or "ptetaphie" (pT, pseudorapidity, azimuth, energy).
    """
    if kind == "pxpypze":
        return vectors
    pt, eta, phi, energy = vectors.unbind(-1)
    return torch.stack((pt * phi.cos(), pt * phi.sin(), pt * eta.sinh(), energy), dim=-1)


def pair_kinematics(momenta: Tensor, first: Tensor, second: Tensor) -> PairKinematics:
    """Kinematics of the pairs (first[p], second[p]).

    momenta : [M,4]; first, second : int64 [P], rows of it.
    """
    px, py, pz, energy = momenta.unbind(-1)
    pt = (px.square() + py.square()).sqrt()
    # 0.5 ln((E+pz)/(E-pz)), written so that rounding of E - pz to zero or below gives a large number, not NaN
    rapidity = 0.5 * torch.log(1 + 2 * pz / (energy - pz).clamp(min=1e-20))
    phi = torch.atan2(py, px)

    d_rapidity = rapidity[first] - rapidity[second]
    d_phi = (phi[first] - phi[second] + math.pi) % (2 * math.pi) - math.pi
    delta_r = (d_rapidity.square() + d_phi.square()).sqrt()
    softer = torch.minimum(pt[first], pt[second])
    total = momenta[first] + momenta[second]
    mass2 = total[:, 3].square() - total[:, :3].square().sum(-1)
    return PairKinematics(softer * delta_r, softer / (pt[first] + pt[second]).clamp(min=TINY), delta_r, mass2)


def log_features(pairs: PairKinematics) -> Tensor:
    """The paper's (ln kT, ln z, ln dR, ln m2) [P,4]."""
    return torch.stack([quantity.clamp(min=TINY).log() for quantity in pairs], dim=-1)


def log1p_features(pairs: PairKinematics) -> Tensor:
    """B-Hive's (ln(1 + kT), ln(1 + z), ln(1 + dR), ln(1 + m2)) [P,4]."""
    return torch.stack([(quantity.clamp(min=TINY) + 1).log() for quantity in pairs], dim=-1)
