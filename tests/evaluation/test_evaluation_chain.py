"""From ROOT files to predictions joined back to them, with the real dataset, loader and model."""

import json

import numpy as np
import pytest
import torch
import uproot

from bhive_mltf.config import load
from bhive_mltf.data.build.construct import construct
from bhive_mltf.data.build.stage import stage
from bhive_mltf.data.dataset import open_dataset
from bhive_mltf.data.loader.loader import BatchLoader
from bhive_mltf.data.ntuples.jobs import StageJob
from bhive_mltf.evaluation import figures, prediction_files
from bhive_mltf.evaluation.predictions import predict
from bhive_mltf.evaluation.roc import make_roc_directory
from bhive_mltf.evaluation.working_points import make_working_points
from bhive_mltf.models import registry
from bhive_mltf.testing.jets import write_btag

MODEL = "DeepJet"


def reversed_globals(config):
    """The same config with the columns of `global` in another order: the first two are not pt and eta."""
    groups = tuple(
        group.model_copy(update={"plain": group.plain[::-1]}) if group.name == "global" else group
        for group in config.groups
    )
    return config.model_copy(update={"groups": groups})


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    base = tmp_path_factory.mktemp("chain")
    config = reversed_globals(load("offline_run3").model_copy(update={"processes": ("TT", "QCD")}))
    files = [
        write_btag(base / process / f"{process}_{number}.root", 150, number, process)
        for process, number in (("TT", 1), ("QCD", 2), ("TT", 3))
    ]
    paths = tuple(map(str, files))
    stage(StageJob(config, paths, base / "staged.arrow", seed=3))
    construct(config, [base / "staged.arrow"], base / "set", chunk_size=100, seed=3, filelist=paths)
    dataset = open_dataset(base / "set", config)
    torch.manual_seed(1)
    model = registry.create(MODEL, config)
    loader = BatchLoader(
        dataset,
        range(len(dataset)),
        model.inputs,
        mode="inference",
        batch_size=64,
        seed=3,
        weighted=False,
        config=config,
    )
    predictions = predict(model, loader.epoch(0), "cpu", len(dataset))
    loader.close()
    prediction_files.write(predictions, base / "inference", dataset, model.classes)
    return base, config, dataset, predictions


def test_w38_predictions_join_the_ntuples_by_file_and_entry(chain):
    base, config, dataset, predictions = chain
    assert len(predictions) == len(dataset) == dataset.manifest.n_jets
    files = json.loads((base / "inference/files.json").read_text())["files"]
    paths = {int(index): file["path"] for index, file in files.items()}
    assert list(paths.values()) == list(dataset.manifest.filelist)
    with uproot.open(base / "inference" / "output.root") as file:
        predicted = file["tree"].arrays(library="np")
    assert (np.diff(predicted["file"]) >= 0).all()
    seen = 0
    for index, path in paths.items():
        with uproot.open(path) as file:
            jets = file[config.treename].arrays(["jet_pt", "jet_eta", "isB", "isG"], library="np")
        mine = predicted["file"] == index
        entries = predicted["entry"][mine]
        assert (np.diff(entries) > 0).all(), "in the order of the tree, each once"
        np.testing.assert_array_equal(predicted["Jet_pt"][mine], jets["jet_pt"][entries])
        np.testing.assert_array_equal(predicted["isB"][mine], jets["isB"][entries])
        np.testing.assert_array_equal(predicted["isG"][mine], jets["isG"][entries])
        seen += len(entries)
    assert seen == len(predictions)


def test_w37_kinematics_are_pt_and_eta_wherever_they_stand(chain):
    _, config, dataset, predictions = chain
    assert config.group("global").columns[:2] != ("jet_pt", "jet_eta")
    path = dataset.manifest.sources[0].path
    with uproot.open(path) as file:
        jets = file[config.treename].arrays(["jet_pt", "jet_eta"], library="np")
    mine = predictions.jet_id[:, 0] == 0
    entries = predictions.jet_id[mine, 1]
    expected = np.stack([jets["jet_pt"], jets["jet_eta"]], axis=1)[entries]
    np.testing.assert_array_equal(predictions.kinematics[mine], expected)


def test_files_name_content_and_process(chain):
    base, config, dataset, predictions = chain
    files = json.loads((base / "inference" / "files.json").read_text())["files"]
    assert [file["content_id"] for file in files.values()] == [source.content_id for source in dataset.manifest.sources]
    by_file = [config.processes[predictions.process[predictions.jet_id[:, 0] == index][0]] for index in range(3)]
    assert by_file == ["TT", "QCD", "TT"]


def test_roc_curves_and_working_points_of_a_real_model(chain, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "save", lambda figure, directory, stem: f"{stem}.png")
    base, config, _, _ = chain
    predictions = prediction_files.read_predictions(base / "inference")
    classes = registry.classes(MODEL)
    summary = make_roc_directory(predictions, classes, config, tmp_path / "roc")
    assert 0 <= summary.auc["all"]["bvsl"]["auc"] <= 1
    assert {"TT", "QCD"} <= set(summary.auc)
    assert list(make_working_points(predictions, classes, tmp_path / "wp").points) == ["bvsl"]
