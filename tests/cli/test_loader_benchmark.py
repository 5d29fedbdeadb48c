"""`bhive-mltf loader-benchmark`, as it is typed."""

import json

import pytest

from bhive_mltf import config as configs
from bhive_mltf.cli import main
from bhive_mltf.data.loader.benchmark import STAGES
from bhive_mltf.testing.jets import write_btag
from tests.helpers.building import build


@pytest.fixture(scope="module", params=["ArrowDataset", "LZ4Dataset"])
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("jets")
    config = configs.load("offline_run3").model_copy(update={"dataset": request.param})
    files = [str(write_btag(folder / f"{name}.root", 100, seed, name)) for seed, name in enumerate(("TT", "QCD"))]
    return request.param, build(config, files, folder / "set")


def command(dataset, *options):
    return main(["loader-benchmark", str(dataset.directory), "--config", "offline_run3", *map(str, options)])


def test_where_the_time_goes_as_json(world, capsys):
    layout, dataset = world
    options = ("--model-name", "DeepJet", "--batch-size", 32, "--batches", 3, "--n-threads", 1, "--json")
    assert command(dataset, *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["batch_size"], found["n_batches"]) == (32, 3)
    for epoch in (found["first"], found["later"]):
        assert set(epoch) == set(STAGES)
        assert all(epoch[stage] > 0 for stage in ("plan", "read", "gather", "hand-over"))
        assert (epoch["decode"] > 0) == (layout == "LZ4Dataset")
    assert found["over_memcpy"] == pytest.approx(sum(found["later"].values()) / found["memcpy"])
    groups = [group for group in dataset.schema.groups if group.name != "global"]
    numbers = sum(len(group.columns) * group.length for group in groups)
    assert found["bytes_per_batch"] > 32 * 4 * numbers, "DeepJet reads every candidate, padded to the full length"
    assert set(found["rates"]) == {"0", "1"}
    assert min(found["rates"].values()) > 0


def test_a_table_that_fits_the_terminal(world, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    layout, dataset = world
    assert command(dataset, "--model-name", "DeepJet", "--batch-size", 64, "--weighted", "--batches", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    names = [line.split()[0] for line in lines if line.strip()]
    expected = [stage for stage in STAGES if layout == "LZ4Dataset" or stage != "decode"]
    assert [name for name in names if name in {*STAGES, "sum", "memcpy"}] == [*expected, "sum", "memcpy"]
    assert any("x memcpy, 1 batches of 64 jets" in line for line in lines)
    assert lines[-1].endswith("jets/s with 0 workers")


def test_wrong_input_is_one_sentence(world, capsys):
    _, dataset = world
    assert command(dataset, "--model-name", "DeepJett") == 1
    assert "DeepJet" in capsys.readouterr().err
    assert command(dataset, "--model-name", "DeepJet", "--batch-size", 100_000) == 1
    assert "fewer than one global batch of 100000" in capsys.readouterr().err
