"""Jets lost to numbers that are not finite, by column and label; and what the config makes of such numbers."""

import logging

import numpy as np
import pytest

from bhive_mltf.errors import ConfigError
from bhive_mltf.testing.root_files import Jets, write_tree
from tests.helpers.building import build, hand_made, small_config

N_JETS = 60


def write(folder, *, masses=(), npv=()):
    """A file in which sv_mass is NaN for the first vertex of the jets `masses`, and npv infinite for the jets `npv`."""
    jets = hand_made(N_JETS)
    counts, values = jets.lists["n_sv"]
    mass = values["sv_mass"].copy()
    mass[(np.cumsum(counts) - counts)[list(masses)]] = np.nan
    scalars = dict(jets.scalars)
    scalars["npv"] = scalars["npv"].copy()
    scalars["npv"][list(npv)] = np.inf
    changed = Jets(scalars, {**jets.lists, "n_sv": (counts, {"sv_mass": mass})})
    return str(write_tree(folder / "TT.root", "deepntuplizer/tree", changed, basket_jets=20))


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "finite" in r.getMessage()]


# Jet i has i % 3 vertices and is b, c or light in turn: jets with vertices are c and light.
C_JETS, LIGHT_JETS = (1, 4, 7, 10, 13), (2, 5)


@pytest.mark.parametrize("max_jets", [1000, 7])
def test_f11_columns_and_labels_are_told(tmp_path, caplog, max_jets):
    path = write(tmp_path, masses=C_JETS + LIGHT_JETS, npv=(1, 3))
    made = build(small_config(tmp_path), [path], tmp_path / "set", max_jets=max_jets)
    assert made.manifest.accounting.rejected["non_finite"] == 8
    [sentence] = warnings(caplog)
    assert sentence == (
        "8 jets are left out for numbers that are not finite: `sv_mass` in 7 of 60 jets (isC 5 of 20, isUD 2 of 20); "
        "`npv` in 2 of 60 jets (isC 1 of 20, isB 1 of 20): say in the config's `non_finite` what such a number "
        "becomes, or leave the column out"
    )


def test_f11_a_custom_feature_is_a_column_too(tmp_path, caplog):
    config = small_config(tmp_path, cpf_custom_features=[{"bad": "log(0 * Cpfcan_pt)"}])
    made = build(config, [write(tmp_path)], tmp_path / "set")
    assert made.manifest.n_jets == 15  # those without tracks
    [sentence] = warnings(caplog)
    assert "45 jets are left out" in sentence
    assert "`bad` in 45 of 60 jets (isUD 15 of 20, isC 15 of 20, isB 15 of 20)" in sentence


def test_f11_few_jets_are_not_told(tmp_path, caplog):
    jets = hand_made(3000)
    npv = jets.scalars["npv"].copy()
    npv[7] = np.nan
    eta = {"jet_pt": np.full(3000, 50, np.float32)}
    path = write_tree(tmp_path / "TT.root", "deepntuplizer/tree", Jets({**jets.scalars, "npv": npv, **eta}, jets.lists))
    made = build(small_config(tmp_path), [str(path)], tmp_path / "set")
    assert made.manifest.accounting.rejected["non_finite"] == 1
    assert warnings(caplog) == []


def test_f11_the_config_says_what_such_a_number_becomes(tmp_path, caplog):
    path = write(tmp_path, masses=C_JETS + LIGHT_JETS, npv=(1, 3))
    changes = {"non_finite": {"sv_mass": -1, "npv": 0.5}, "vtx_custom_features": [{"double": "2 * sv_mass"}]}
    made = build(small_config(tmp_path / "a", **changes), [path], tmp_path / "set")
    assert made.manifest.accounting.rejected["non_finite"] == 0
    assert warnings(caplog) == []
    block = made.read(0, N_JETS)
    replaced = block.features["vtx"][:, 0] == -1
    assert replaced.sum() == 7
    np.testing.assert_array_equal(block.features["vtx"][:, 1], 2 * block.features["vtx"][:, 0])
    entries = block.jet_id[:, 1]
    assert sorted(entries[block.features["global"][:, 2] == 0.5]) == [1, 3]


def test_f11_a_custom_feature_can_be_replaced(tmp_path):
    custom = [{"ratio": "sv_mass / 0"}]
    config = small_config(tmp_path, vtx_custom_features=custom, non_finite={"ratio": 7})
    made = build(config, [write(tmp_path)], tmp_path / "set")
    assert made.manifest.n_jets == N_JETS
    assert (made.read(0, N_JETS).features["vtx"][:, 1] == 7).all()


def test_f11_numbers_of_other_columns_still_count(tmp_path):
    path = write(tmp_path, masses=C_JETS, npv=(1, 3))
    made = build(small_config(tmp_path, non_finite={"npv": 0}), [path], tmp_path / "set")
    assert made.manifest.accounting.rejected["non_finite"] == 5


def test_f11_the_key_is_part_of_the_digest_only_where_given(tmp_path):
    plain, empty, zero, one = (
        small_config(tmp_path / str(i), **({} if value is None else {"non_finite": value}))
        for i, value in enumerate((None, {}, {"npv": 0}, {"npv": 1}))
    )
    assert plain.dataset_digest == empty.dataset_digest
    assert len({plain.dataset_digest, zero.dataset_digest, one.dataset_digest}) == 3


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"sv_mas": 0}, "non_finite.*`?sv_mas`?.*sv_mass"),
        ({"sv_mass": "zero"}, "non_finite.sv_mass"),
        ({"sv_mass": 1e39}, "non_finite.sv_mass: .* is not a number that float32 can hold"),
        ({"sv_mass": float("nan")}, "non_finite.sv_mass"),
        (["sv_mass"], "non_finite: .* is not a mapping"),
    ],
)
def test_f11_a_wrong_key_or_value_is_refused(tmp_path, value, message):
    with pytest.raises(ConfigError, match=message):
        small_config(tmp_path, non_finite=value)
