from __future__ import annotations

import math

import numpy as np
import torch

from bhive_mltf.models.kinematics import cartesian, log1p_features, log_features, pair_kinematics


def momentum(pt, rapidity, phi, mass):
    """(px, py, pz, E) from transverse momentum, true rapidity, azimuth and mass."""
    transverse = math.hypot(pt, mass)
    return [
        pt * math.cos(phi),
        pt * math.sin(phi),
        transverse * math.sinh(rapidity),
        transverse * math.cosh(rapidity),
    ]


def test_w32_pt_eta_phi_energy_becomes_cartesian():
    vectors = torch.tensor([[10.0, 1.5, -2.0, 30.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    expected = [[10 * math.cos(-2), 10 * math.sin(-2), 10 * math.sinh(1.5), 30], [0, 0, 0, 0]]
    np.testing.assert_allclose(cartesian(vectors, "ptetaphie"), expected, rtol=1e-14)
    assert cartesian(vectors, "pxpypze") is vectors


def test_pair_of_known_particles():
    momenta = torch.tensor([momentum(10, 0.3, 3.0, 0.5), momentum(4, -0.2, -3.0, 0.1)], dtype=torch.float64)
    pairs = pair_kinematics(momenta, torch.tensor([0, 1]), torch.tensor([1, 0]))
    delta_r = math.hypot(0.5, 2 * math.pi - 6.0)  # across the seam of the azimuth
    total = momenta.sum(0)
    mass2 = float(total[3] ** 2 - total[:3].square().sum())
    for got, expected in zip(pairs, (4 * delta_r, 4 / 14, delta_r, mass2), strict=True):
        np.testing.assert_allclose(got, [expected, expected], rtol=1e-10)


def test_features_are_bounded_logarithms():
    momenta = torch.tensor([momentum(10, 0.3, 0.1, 0.0), momentum(4, -0.2, 0.4, 0.1)], dtype=torch.float64)
    pairs = pair_kinematics(momenta, torch.tensor([0, 1]), torch.tensor([0, 0]))
    plain, plus = log_features(pairs), log1p_features(pairs)
    assert plain.shape == plus.shape == (2, 4)
    np.testing.assert_allclose(plain[1], [math.log(float(q[1])) for q in pairs])
    np.testing.assert_allclose(plus[1], [math.log1p(float(q[1])) for q in pairs])
    # a massless particle with itself: kT, dR and m2 are zero
    np.testing.assert_allclose(plain[0], [math.log(1e-8), math.log(0.5), math.log(1e-8), math.log(1e-8)], rtol=1e-6)


def test_padding_and_rounding_give_finite_numbers():
    along_the_beam = [0.0, 0.0, 5.0, 5.0]
    too_little_energy = [3.0, 0.0, 100.0, 99.0]
    momenta = torch.tensor([along_the_beam, too_little_energy, [0.0] * 4])
    first, second = torch.tril_indices(3, 3)
    assert log_features(pair_kinematics(momenta, first, second)).isfinite().all()
    assert log1p_features(pair_kinematics(momenta, first, second)).isfinite().all()
