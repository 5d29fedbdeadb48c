"""Greenhouse gases: energy, PUE and grid, each of them said."""

import pytest

from bhive_mltf.errors import ParameterError
from bhive_mltf.tracking import attach, prepare
from bhive_mltf.tracking.report import page
from bhive_mltf.tracking.report.contents import read
from bhive_mltf.tracking.report.emissions import emissions


@pytest.mark.parametrize(
    ("environment", "kilograms", "said"),
    [
        ({}, 0.475, "world average 2019"),
        ({"BHIVE_MLTF_GRID": "fra"}, 0.0674, "FRA, Our World in Data"),
        ({"BHIVE_MLTF_GRID": "100", "BHIVE_MLTF_PUE": "1.5"}, 0.15, "PUE 1.5 x 100 g/kWh (given by"),
    ],
)
def test_a_kilowatt_hour(environment, kilograms, said):
    found = emissions(1000.0, environment)
    assert found.kilograms == pytest.approx(kilograms)
    assert said in str(found)


@pytest.mark.parametrize(
    ("environment", "said"),
    [({"BHIVE_MLTF_GRID": "Atlantis"}, "names no grid"), ({"BHIVE_MLTF_PUE": "0.5"}, "at least 1")],
)
def test_wrong_assumptions_are_refused(environment, said):
    with pytest.raises(ParameterError, match=said):
        emissions(1.0, environment)


def test_the_report_shows_them(data_path, monkeypatch):
    prepare(data_path / "t", data_path=data_path, run_name="t")
    with attach(data_path / "t") as run:
        run.metrics({"system/gpu_0_energy_watt_hours": 2000.0}, 1)
    monkeypatch.setenv("BHIVE_MLTF_GRID", "DEU")
    assert "0.731 kg CO2e: 2,000.0 Wh of the GPUs" in page.render(read(data_path / "t"))
    monkeypatch.setenv("BHIVE_MLTF_GRID", "Atlantis")
    assert "not known: BHIVE_MLTF_GRID is" in page.render(read(data_path / "t"))
