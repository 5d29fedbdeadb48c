"""An adversarial training by iterations with a validation set of its own: evaluated, extended, taken back."""

import numpy as np
import pytest

from tests.helpers.commands import Sandbox, flat

pytestmark = pytest.mark.long

TRAINING = "TrainingTask/offline_run3/v1/t1/DeepJet/epochs_0/pgd/epsilon_0.01/iterations_1"
BY_ITERATIONS = {"use-iterations": True, "total-iterations": 7, "n-iters-per-save": 3}
ATTACKS = {"--attack": "pgd", "--attack-magnitude": 0.01, "--optimizer": "Ranger", "--lr-scheduler": "batch_exp_decay"}
ATTACKS["--weight-decay"] = 0.01
TEST_ATTACK = {"--test-attack": "jetfool", "--test-attack-iterations": 2}
VALIDATION = {"val-dataset-version": "v1_val"}


def options(values, prefix="--"):
    return [part for name, value in values.items() for part in (f"{prefix}{name}", value)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, law_home, btag_options, btag_lists, test_options):
    """Upstream's command: the evaluation is typed, the flags of the training are given as its own."""
    sandbox = Sandbox(tmp_path_factory.mktemp("options"), law_home)
    sandbox.typed = flat({**btag_options, **ATTACKS, "--epochs": 0, "--tracking": False})
    validation = {**VALIDATION, "val-filelist": btag_lists / "test.txt"}
    flags = options({**BY_ITERATIONS, **validation, "loss-weighting": True}, "--TrainingTask-")
    sandbox.output = sandbox.run("InferenceTask", *sandbox.typed, *flat(test_options, TEST_ATTACK), *flags)
    sandbox.test = flat(test_options, TEST_ATTACK)
    sandbox.directory = sandbox.data_path / TRAINING
    return sandbox


def models(sandbox):
    return sorted(int(path.stem.removeprefix("model_")) for path in sandbox.directory.glob("model_*.pt"))


def test_w23_iterations_in_the_command_of_a_downstream_task(trained):
    assert models(trained) == [3, 6, 7]
    assert len(np.load(trained.directory / "validation_metrics.npz")["loss"]) == 3
    assert (trained.data_path / "DatasetConstructorTask/offline_run3/v1_val/manifest.json").is_file()
    # what was trained is found again without the flags
    status = trained.law("run", "InferenceTask", *trained.typed, *trained.test, "--print-status", 1).stdout
    assert "absent" not in status
    assert f"{TRAINING}/model_7.pt" in status


def test_w31_attacked_predictions_lie_in_a_folder_of_their_own(trained):
    (prediction,) = (trained.data_path / "InferenceTask").rglob("prediction.npy")
    assert prediction.parent.name == "test_overshoot_0.02"
    assert prediction.parent.parent.name == "test_attack_jetfool"
    assert np.isfinite(np.load(prediction)).all()
    assert "debug" not in trained.output.lower()
    more = [*trained.typed, *trained.test, "--test-attack-iterations", 3]
    refused = trained.law("run", "InferenceTask", *more).stdout
    assert "--test-attack-iterations 2, and 3 is asked for" in refused


def test_w31_the_other_attack_on_the_jets_of_a_test(trained):
    options = [*trained.typed, *trained.test, "--test-attack", "optimizer", "--test-attack-magnitude", 0.05]
    output = trained.run("InferenceTask", *options, "--test-attack-individual-factors", True)
    predictions = {path.parent: np.load(path) for path in (trained.data_path / "InferenceTask").rglob("prediction.npy")}
    (mine,) = (folder for folder in predictions if "test_attack_optimizer" in folder.parts)
    assert mine.name == "uncertainty_1.0"
    (other,) = predictions.keys() - {mine}
    assert np.isfinite(predictions[mine]).all()
    assert (predictions[mine] != predictions[other]).any()
    assert "debug" not in output.lower()


def test_w19_extension_and_going_back_by_iterations(trained):
    flags = [*trained.typed, *options({**BY_ITERATIONS, **VALIDATION, "loss-weighting": True})]
    assert "iteration 9/9" in trained.run("TrainingTask", *flags, "--extend-training", 2)
    assert models(trained) == [3, 6, 7, 9]
    assert [len(np.load(trained.directory / f"{part}_time.npy")) for part in ("train", "val")] == [4, 4]
    assert "set aside" in trained.run("TrainingTask", *flags, "--resume-epoch", 3)
    assert models(trained) == [3, 6, 7]
    assert [len(np.load(trained.directory / f"{part}_time.npy")) for part in ("train", "val")] == [3, 3]
    refused = trained.law("run", "TrainingTask", *flags, "--resume-epoch", 5)
    assert "resume_epoch 5 needs model_5.pt" in refused.stdout
    assert "which has the iterations 3, 6, 7: resume" in refused.stdout
    assert "Traceback" not in refused.stdout
