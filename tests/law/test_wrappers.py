"""Upstream's wrapper tasks ask for the chain of their model."""

import json
import subprocess
import sys

import pytest

from tests.helpers.commands import REPOSITORY, flat

LOOK = """
import json, sys
from bhive_mltf.law.tasks import wrappers as DeepFlavour

found = {}
for name in ("DeepJetRun", "DeepJetRunHLT", "DeepJetRunHLTPhase2", "ParticleNetRunHLT"):
    run = getattr(DeepFlavour, name)(version="v", training_filelist="a.txt", test_filelist="b.txt")
    tasks = run.requires()
    found[name] = [sorted(tasks), *(getattr(tasks["roc"], key) for key in sys.argv[1:])]
print(json.dumps(found))
"""
KEYS = ("config", "model_name", "epochs", "dataset_version", "test_dataset_version", "filelist", "training_version")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOOK, *KEYS],
        cwd=REPOSITORY,
        env={"DATA_PATH": str(tmp_path_factory.mktemp("out")), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("name", "config", "model"),
    [
        ("DeepJetRun", "offline_run3", "DeepJet"),
        ("DeepJetRunHLT", "hlt_run3", "DeepJetHLT"),
        ("DeepJetRunHLTPhase2", "hlt_phase2", "DeepJetHLT"),
        ("ParticleNetRunHLT", "hlt_run3", "ParticleNet_InProHLT"),
    ],
)
def test_the_chain_of_each(found, name, config, model):
    assert found[name] == [["roc", "working_points"], config, model, 3, "v", "v_test", "a.txt", "v"]


@pytest.mark.long
def test_one_command_from_ntuples_to_working_points(sandbox, btag_lists):
    lists = {"--training-filelist": btag_lists / "train.txt", "--test-filelist": btag_lists / "test.txt"}
    options = flat({"--version": "v", **lists, "--batch-size": 128, "--n-threads": 0, "--tracking": False})
    sandbox.run("DeepJetRun", *options, "--TrainingTask-loss-weighting", True)
    evaluation = "offline_run3/v/v_test/v/DeepJet/epochs_3/nominal/test_attack_nominal"
    assert (sandbox.data_path / "ROCCurveTask" / evaluation / "auc.json").exists()
    assert (sandbox.data_path / "WorkingPointTask" / evaluation / "working_points.json").exists()
    assert (sandbox.data_path / "TrainingTask/offline_run3/v/v/DeepJet/epochs_3/nominal/model_2.pt").exists()
    assert "1 complete ones were encountered" in sandbox.run("DeepJetRun", *options)
