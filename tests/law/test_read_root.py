"""--read-root: training on ROOT files without a training set; the result is that of the constructed one."""

import pytest
import torch

from tests.helpers.commands import flat


@pytest.mark.long
def test_reading_on_the_fly_trains_alike(sandbox, btag_options, btag_lists, tmp_path):
    options = [*flat({**btag_options, "--epochs": 1}), "--tracking", False]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    sandbox.run("TrainingTask", *options, "--read-root", True, "--ranks-per-node", 2, TMPDIR=str(scratch))
    assert not (sandbox.data_path / "DatasetConstructorTask").exists()
    assert list(scratch.glob("bhive_mltf_*/*")) == []
    sandbox.run("TrainingTask", *options, "--training-version", "constructed", "--ranks-per-node", 2)
    folder = sandbox.data_path / "TrainingTask/offline_run3/v1"
    mine, theirs = (
        torch.load(folder / version / "DeepJet/epochs_1/nominal/best_model.pt", weights_only=False)
        for version in ("t1", "constructed")
    )
    assert mine["dataset_digest"] == theirs["dataset_digest"]
    for name, value in theirs["model_state_dict"].items():
        assert torch.equal(value, mine["model_state_dict"][name]), name

    other = sandbox.law("run", "TrainingTask", *options, "--filelist", btag_lists / "test.txt", "--read-root", True)
    assert other.returncode != 0
    assert "root_files" in other.stdout
