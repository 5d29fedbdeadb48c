"""Models through the whole chain: one with regression outputs, one of another package."""

import shutil

import numpy as np
import pytest
import torch
import uproot

from bhive_mltf.testing import jets
from tests.helpers.commands import flat

THEIRS = """
import os
from torch import nn
from bhive_mltf.models.base import Tagger
from bhive_mltf.models.classes import OFFLINE_UD
from bhive_mltf.models.resolve import GroupRequest

class Sum(Tagger):
    classes = OFFLINE_UD
    groups = (GroupRequest("cpf"),)

    def __init__(self, config, *, width=8):
        super().__init__(config)
        self.embed = nn.Sequential(nn.Linear(len(self.inputs.group("cpf").columns), width), nn.ReLU())
        self.head = nn.Linear(width, len(self.classes))

    def forward(self, batch):
        mask = self.group_of(batch, "cpf").mask[..., None]
        return self.head((self.embed(self.features(batch, "cpf").clamp(-5, 5)) * mask).mean(1))

class Jumping(Sum):
    steps = 0

    def forward(self, batch):
        self.steps += self.training
        return super().forward(batch) * (1000 if self.steps == 60 else 1)

class Failing(Sum):
    def forward(self, batch):
        if os.environ.get("FAILING_RANK") == os.environ["RANK"]:
            raise KeyError("no such table")
        return super().forward(batch)
"""


@pytest.fixture
def lists(tmp_path):
    """Lists of toy jets with lost tracks: 240 to train on, 80 to test."""
    for part, n_jets, seed in (("train", 120, 1), ("test", 40, 3)):
        paths = [
            jets.write_lost_tracks(tmp_path / f"{part}_{process}.root", n_jets, seed, process)
            for process in ("TT", "QCD")
        ]
        (tmp_path / f"{part}.txt").write_text("".join(f"{path}\n" for path in paths))
    return tmp_path


def options(lists, **more):
    common = {
        "--dataset-version": "v1",
        "--filelist": lists / "train.txt",
        "--test-dataset-version": "v1_test",
        "--test-filelist": lists / "test.txt",
        "--training-version": "t1",
        "--batch-size": 64,
        "--n-threads": 0,
    }
    return flat({**common, **{f"--{name.replace('_', '-')}": value for name, value in more.items()}})


@pytest.mark.long
def test_upart_from_files_to_roc_curves(sandbox, lists):
    mlflow = pytest.importorskip("mlflow")
    given = options(
        lists,
        config="UParT_v0_run3",
        model_name="UParT_v0",
        model_kwargs='{"num_layers": 1, "embed_dim": 16, "num_heads": 2}',
        loss_function="CrossEntropyLogCosh",
    )
    sandbox.run("ROCCurveTask", *given, "--TrainingTask-loss-weighting", True)
    (training,) = sandbox.data_path.glob("TrainingTask/UParT_v0_run3/v1/t1/UParT_v0/epochs_1/kwargs_*/nominal")
    with np.load(training / "validation_metrics.npz") as arrays:
        assert set(arrays) == {"loss", "acc", "loss_cat", "loss_reg"}
        total = arrays["loss_cat"] + arrays["loss_reg"]
        np.testing.assert_allclose(total, arrays["loss"])
        client = mlflow.MlflowClient(f"sqlite:///{sandbox.data_path}/mlflow.db")
        (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
        assert run.data.metrics["Validation Regression Loss"] == pytest.approx(float(arrays["loss_reg"][-1]))
        assert run.data.metrics["Validation Classification Loss"] == pytest.approx(float(arrays["loss_cat"][-1]))

    (inference,) = sandbox.data_path.glob("InferenceTask/UParT_v0_run3/v1/v1_test/t1/UParT_v0/epochs_1/kwargs_*/*/*")
    n_jets = len(np.load(inference / "truth.npy"))
    assert np.load(inference / "prediction.npy").shape == (n_jets, 6)
    assert np.load(inference / "regression.npy").shape == (n_jets, 4)
    target = np.load(inference / "regression_target.npy")
    tree = uproot.open(inference / "output.root")["tree"]
    np.testing.assert_array_equal(tree["reg_pt_with_neutrinos_target"].array(library="np"), target[:, 3])
    # the particle jet of the ntuple, in the order of its entries
    generated = uproot.open(lists / "test_TT.root")["deepntuplizer/tree"].arrays(["gen_pt", "jet_pt"], library="np")
    ids = np.load(inference / "jet_id.npy")
    first = ids[:, 0] == 0
    expected = np.clip((generated["gen_pt"] / generated["jet_pt"])[ids[first, 1]], 0.3, 2.0)
    np.testing.assert_allclose(target[first, 0], expected, rtol=1e-5)
    assert list(
        sandbox.data_path.glob("ROCCurveTask/UParT_v0_run3/v1/v1_test/t1/UParT_v0/epochs_1/*/*/*/roc_default_bvsl.npy")
    )


@pytest.mark.long
def test_a_model_of_another_package_from_files_to_roc_curves(sandbox, lists):
    (sandbox.folder / "their_nets.py").write_text(THEIRS)
    given = options(lists, config="offline_run3", model_name="their_nets:Sum", tracking=False)
    given += ["--TrainingTask-loss-weighting", True, "--ranks-per-node", 2]
    done = sandbox.law("run", "ROCCurveTask", *given)
    assert "there is no module 'their_nets'; install its package, or put the folder" in done.stdout
    path = f"{sandbox.folder}:{sandbox.environment['PYTHONPATH']}"
    sandbox.run("ROCCurveTask", *given, PYTHONPATH=path)
    assert (
        sandbox.data_path / "TrainingTask/offline_run3/v1/t1/their_nets.Sum/epochs_1/nominal/best_model.pt"
    ).exists()
    (curve,) = sandbox.data_path.glob(
        "ROCCurveTask/offline_run3/v1/v1_test/t1/their_nets.Sum/*/*/*/roc_default_bvsl.npy"
    )
    assert np.isfinite(np.load(curve)).any()


@pytest.mark.long
def test_a_model_by_entry_point_and_the_warning_of_its_loss(sandbox, lists):
    mlflow = pytest.importorskip("mlflow")
    (sandbox.folder / "their_nets.py").write_text(THEIRS)
    info = sandbox.folder / "their_nets-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-nets\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bhive_mltf.models]\nJumps = their_nets:Jumping\n")
    given = options(lists, config="offline_run3", model_name="Jumps", epochs=2, batch_size=4)
    path = f"{sandbox.folder}:{sandbox.environment['PYTHONPATH']}"
    output = sandbox.run("InferenceTask", *given, "--TrainingTask-loss-weighting", True, PYTHONPATH=path)
    assert "at step 59, over a median of" in " ".join(output.split())
    assert (sandbox.data_path / "TrainingTask/offline_run3/v1/t1/Jumps/epochs_2/nominal/best_model.pt").exists()
    client = mlflow.MlflowClient(f"sqlite:///{sandbox.data_path}/mlflow.db")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert "the loss jumped to" in run.data.tags["warning"]


@pytest.mark.long
def test_an_error_in_a_rank_is_shown_with_rank_and_traceback(sandbox, lists):
    (sandbox.folder / "their_nets.py").write_text(THEIRS)
    given = options(lists, config="offline_run3", model_name="their_nets:Failing", tracking=False, ranks_per_node=2)
    given += ["--TrainingTask-loss-weighting", True]
    path = f"{sandbox.folder}:{sandbox.environment['PYTHONPATH']}"
    done = sandbox.law("run", "InferenceTask", *given, PYTHONPATH=path, FAILING_RANK="1")
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert "Rank 1 of 2 failed (KeyError: 'no such table'); its traceback is in" in said
    assert 'their_nets.py", line' in said
    assert said.count("Traceback (most recent call last)") <= 1
    sandbox.run("InferenceTask", *given, PYTHONPATH=path)


@pytest.mark.long
def test_a_transformer_in_bf16_on_two_ranks(sandbox, lists):
    kwargs = '{"num_layers": 1, "num_cls_layers": 1, "embed_dim": 16, "num_heads": 2}'
    given = options(
        lists, config="part_run3_lt", model_name="ParticleTransformer2_LT", model_kwargs=kwargs, tracking=False
    )
    given += ["--unmatched", "drop", "--ranks-per-node", 2, "--mixed-precision", True]
    given += ["--TrainingTask-loss-weighting", True]
    sandbox.run("InferenceTask", *given)
    (training,) = sandbox.data_path.glob("TrainingTask/part_run3_lt/v1/t1/**/best_model.pt")
    state = torch.load(training, weights_only=True)
    assert not any("_orig_mod" in key or key.startswith("module.") for key in state["model_state_dict"])
    assert np.isfinite(state["loss_val"])
    (prediction,) = sandbox.data_path.glob("InferenceTask/**/prediction.npy")
    assert np.isfinite(np.load(prediction)).all()


@pytest.mark.nightly
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_upstreams_offline_4_on_part_run3(sandbox):
    jets.write_btag(sandbox.folder / "ntuple_merged_0.root", 60, 1)
    (sandbox.folder / "filelist.txt").write_text(f"{sandbox.folder}/ntuple_merged_0.root\n")
    typed = """--debug True --DatasetConstructorTask-chunk-size 1000 --config part_run3 --training-version test_offline
        --dataset-version test_offline --filelist filelist.txt --test-dataset-version test_offline
        --test-filelist filelist.txt --model-name ParticleTransformer --epochs 1 --batch-size 4
        --lr-scheduler epoch_lin_decay --lr-decay-factor 0.01 --optimizer RAdam --attack jetfool --attack-magnitude 0.1
        --test-attack optimizer --test-attack-magnitude 0.15 --use-torch-compile True --torch-compile-mode default
        --mixed-precision True"""
    cache = sandbox.folder / "inductor"
    output = sandbox.run("ROCCurveTask", *typed.split(), TORCHINDUCTOR_CACHE_DIR=str(cache))
    assert list(cache.rglob("*.so"))
    # torch's limit of variants, beyond which a function runs as written
    assert "hit config" not in output
    (best,) = sandbox.data_path.glob("TrainingTask/part_run3/debug/test_offline/**/best_model.pt")
    state = torch.load(best, weights_only=True)
    assert not any("_orig_mod" in key for key in state["model_state_dict"])
    assert np.isfinite(state["loss_val"])
    (prediction,) = sandbox.data_path.glob("InferenceTask/part_run3/debug/**/prediction.npy")
    logits = np.load(prediction)
    assert logits.shape == (60, 6)
    assert np.isfinite(logits).all()
    assert list(sandbox.data_path.glob("ROCCurveTask/part_run3/debug/**/roc_default_bvsl.npy"))
