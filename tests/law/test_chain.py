"""The whole chain through `law run`, two ranks, tracked in a real SQLite store."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import uproot

from bhive_mltf import compat
from bhive_mltf.evaluation import inference, prediction_files
from bhive_mltf.evaluation.predictions import PER_JET
from tests.helpers import tracking_server
from tests.helpers.commands import REPOSITORY, Sandbox, flat

EVALUATION = Path("offline_run3/v1/v1_test/t1/DeepJet/epochs_2/nominal/test_attack_nominal")
TRAINING = Path("TrainingTask/offline_run3/v1/t1/DeepJet/epochs_2/nominal")


@pytest.fixture(scope="module")
def chain(tmp_path_factory, law_home, btag_options, test_options):
    """ROCCurveTask and WorkingPointTask done."""
    sandbox = Sandbox(tmp_path_factory.mktemp("chain"), law_home)
    if compat.has_sqlalchemy():
        shutil.copy(tracking_server.empty_store(tmp_path_factory), sandbox.data_path)
    options = [
        *flat(btag_options, test_options),
        "--ranks-per-node", 2, "--deterministic", True, "--TrainingTask-profile-steps", 1,
        "--TrainingTask-loss-weighting", True, "--TrainingTask-nested-metrics", True,
        "--terminal-plot", True,
    ]  # fmt: skip
    sandbox.output = sandbox.run("ROCCurveTask", *options)
    sandbox.run("WorkingPointTask", *options)
    sandbox.options = options
    return sandbox


@pytest.fixture(scope="module")
def client(chain):
    mlflow = pytest.importorskip("mlflow")
    return mlflow.MlflowClient(f"sqlite:///{chain.data_path}/mlflow.db")


@pytest.fixture(scope="module")
def run(chain, client):
    record = json.loads((chain.data_path / TRAINING / "run.json").read_text())
    return client.get_run(record["run_id"])


def test_the_files_have_upstream_names_and_places(chain):
    expected = {
        "DatasetConstructorTask/offline_run3/v1": ["processed_files.txt", "histogram.npy", "weights.json"],
        "DatasetConstructorTask/offline_run3/v1_test": ["processed_files.txt", "histogram.npy", "weights.json"],
        TRAINING: [
            "training_metrics.npz", "validation_metrics.npz", "best_model.pt", "model_0.pt", "model_1.pt",
            "train_time.npy", "val_time.npy", "loss.pdf", "loss.png", "acc.pdf", "acc.png",
        ],
        "InferenceTask" / EVALUATION: [
            "prediction.npy", "process.npy", "truth.npy", "kinematics.npy", "inference_time.npy",
            "inference_metrics.npz", "jet_id.npy", "files.json", "output.root",
        ],
        "ROCCurveTask" / EVALUATION: [
            "roc_default_bvsl.npy", "roc_default_bvsl.png", "roc_default_bvsl.pdf", "AUC_default_all.npy", "auc.json",
        ],
        "WorkingPointTask" / EVALUATION: [
            "working_point.pdf", "wps_combined.csv", "working_points.csv", "working_points.json",
        ],
    }  # fmt: skip
    missing = [
        f"{folder}/{name}" for folder, names in expected.items() for name in names
        if not (chain.data_path / folder / name).is_file()
    ]  # fmt: skip
    assert missing == []


def test_staged_files_are_gone_once_the_set_is_made(chain):
    assert [p for p in (chain.data_path / "ConvertNtuples").rglob("*") if p.is_file()] == []


def test_w38_each_test_jet_is_predicted_once_in_input_order(chain, btag_lists):
    folder = chain.data_path / "InferenceTask" / EVALUATION
    ids = np.load(folder / "jet_id.npy")
    manifest = json.loads((chain.data_path / "DatasetConstructorTask/offline_run3/v1_test/manifest.json").read_text())
    assert len(ids) == manifest["n_jets"] == manifest["accounting"]["accepted"] > 300
    assert len(np.unique(ids, axis=0)) == len(ids)
    assert (np.lexsort((ids[:, 1], ids[:, 0])) == np.arange(len(ids))).all()
    assert np.load(folder / "prediction.npy").shape == (len(ids), 6)


def test_w38_two_ranks_predict_what_one_does_bit_for_bit(chain, tmp_path):
    folder = chain.data_path / "InferenceTask" / EVALUATION
    plan = inference.InferencePlan.model_validate_json((folder / "inference.json").read_text())
    assert plan.ranks_per_node == 2
    assert not (folder / "parts").exists()
    assert {path.name for path in (folder / "logs").iterdir()} == {"rank_0.log", "rank_1.log"}
    alone = plan.model_copy(update={"ranks_per_node": 1, "threads_per_rank": 1, "directory": tmp_path, "n_threads": 0})
    one = inference.infer(alone, alone.open(), alone.model())
    two = prediction_files.read_predictions(folder)
    assert all(np.array_equal(getattr(one, name), getattr(two, name)) for name in PER_JET)
    assert (one.loss, one.accuracy) == (two.loss, two.accuracy)


def test_w38_output_root_joins_the_ntuples_by_file_and_entry(chain):
    folder = chain.data_path / "InferenceTask" / EVALUATION
    with uproot.open(folder / "output.root") as file:
        (tree,) = [file[key] for key in file.keys(recursive=False)]
        got = tree.arrays(library="np")
    paths = {
        int(number): entry["path"] for number, entry in json.loads((folder / "files.json").read_text())["files"].items()
    }
    assert set(got["file"]) == set(paths)
    truth = np.stack([got[name] for name in ("isB", "isBB", "isLeptB", "isC", "isUDS", "isG")], axis=1)
    for number, path in paths.items():
        rows = got["file"] == number
        with uproot.open(path) as file:
            ntuple = file["deepntuplizer/tree"].arrays(["jet_pt", "jet_eta", "isB", "isG"], library="np")
        entries = got["entry"][rows]
        np.testing.assert_allclose(got["Jet_pt"][rows], ntuple["jet_pt"][entries])
        np.testing.assert_allclose(got["Jet_eta"][rows], ntuple["jet_eta"][entries])
        np.testing.assert_array_equal(truth[rows, 0], ntuple["isB"][entries])
        np.testing.assert_array_equal(truth[rows, 5], ntuple["isG"][entries])
    probabilities = [got[f"prob_{name}"] for name in ("isB", "isBB", "isLeptB", "isC", "isUDS", "isG")]
    np.testing.assert_allclose(np.sum(probabilities, axis=0), 1, rtol=1e-5)


def test_the_tagger_has_learned_something(chain):
    auc = json.loads((chain.data_path / "ROCCurveTask" / EVALUATION / "auc.json").read_text())
    assert auc["all"]["bvsl"]["auc"] > 0.75
    assert "bvsl" in chain.output


def test_w22_the_curves_are_drawn_in_the_terminal_when_asked(chain):
    assert sum("\u2801" <= character <= "\u28ff" for character in chain.output) > 40


def test_one_run_in_mlflow_for_training_and_evaluation(chain, client, run):
    (experiment,) = [e for e in client.search_experiments() if e.name == "bhive_mltf"]
    runs = client.search_runs([experiment.experiment_id])
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == run.info.run_id]
    assert [r.info.run_name for r in children] == ["model_performance_metrics"]
    assert len(runs) == 2
    assert {r.info.status for r in runs} == {"FINISHED"}


def test_the_run_has_parameters_metrics_data_model_and_figures(chain, client, run, tmp_path):
    from mlflow.models import Model

    assert run.data.params["batch_size"] == "128"
    assert run.data.params["model_name"] == "DeepJet"
    for name in ("Training Loss", "Training Accuracy", "Validation Loss", "Validation Accuracy"):
        assert [p.step for p in client.get_metric_history(run.info.run_id, name)] == [0, 1]
    assert {"train/loss", "train/lr", "train/jets_per_s", "auc/all/bvsl", "Test Loss"} <= set(run.data.metrics)
    assert any(name.startswith("system/") for name in run.data.metrics)
    manifest = json.loads((chain.data_path / "DatasetConstructorTask/offline_run3/v1/manifest.json").read_text())
    inputs = {entry.dataset.name: entry.dataset for entry in run.inputs.dataset_inputs}
    assert inputs["v1"].digest == manifest["digest"][:36]
    assert "v1_test" in inputs
    models = client.search_logged_models([run.info.experiment_id])
    assert {m.name: m.source_run_id for m in models} == dict.fromkeys(("best_model", "last_model"), run.info.run_id)
    for model in models:
        signature = Model.load(model.artifact_location.removeprefix("file://")).signature
        assert "cpf_features" in signature.inputs.input_names()
        assert signature.outputs.input_names() == ["logits"]
    figures = {a.path for a in client.list_artifacts(run.info.run_id, "figures")}
    assert {
        "figures/loss.png",
        "figures/acc.png",
        "figures/spectra.png",
        "figures/roc",
        "figures/working_points",
    } <= figures
    spectra = Path(client.download_artifacts(run.info.run_id, "figures/spectra.png", str(tmp_path)))
    made = chain.data_path / "DatasetConstructorTask/offline_run3/v1/spectra.png"
    assert spectra.read_bytes() == made.read_bytes()
    assert spectra.read_bytes().startswith(b"\x89PNG")


def test_the_same_command_again_does_nothing(chain):
    stamps = {p: p.stat().st_mtime_ns for p in chain.data_path.rglob("*.npy")}
    output = chain.run("ROCCurveTask", *chain.options)
    assert "1 complete ones were encountered" in output
    assert {p: p.stat().st_mtime_ns for p in chain.data_path.rglob("*.npy")} == stamps


def test_w17_a_changed_parameter_is_refused_a_default_one_not(chain, btag_options):
    changed = chain.law("run", "TrainingTask", *flat({**btag_options, "--batch-size": 64}), "--loss-weighting", True)
    assert changed.returncode == 50
    assert "--batch-size 128, and 64 is asked for" in changed.stdout
    assert "Traceback" not in changed.stdout
    without = {name: value for name, value in btag_options.items() if name != "--batch-size"}
    assert "--batch-size 128, which holds" in chain.run("TrainingTask", *flat(without), "--loss-weighting", True)


def test_w17_another_config_of_the_same_name_is_refused(chain, btag_options, tmp_path):
    for name in ("default", "offline_run3"):
        shutil.copy(REPOSITORY / "configs" / f"{name}.yml", tmp_path)
    mine = tmp_path / "offline_run3.yml"
    mine.write_text(mine.read_text().replace("n_npf_candidates: 25", "n_npf_candidates: 20"))
    done = chain.law("run", "TrainingTask", *flat({**btag_options, "--config": mine}), "--loss-weighting", True)
    assert done.returncode == 50
    assert "was made with another content of config" in done.stdout
    assert "Traceback" not in done.stdout


def test_w18_results_of_an_older_training_count_as_missing(chain):
    path = chain.data_path / TRAINING / "parameters.json"
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), "generation": "another"}))
    try:
        status = [
            chain.law("run", task, *chain.options, "--print-status", 0).stdout
            for task in ("InferenceTask", "ROCCurveTask", "WorkingPointTask")
        ]
    finally:
        path.write_text(before)
    assert "existent" not in "".join(status)
    assert [text.count("absent") >= 1 for text in status] == [True] * 3
    assert "existent" in chain.law("run", "ROCCurveTask", *chain.options, "--print-status", 0).stdout


REFUSED = {
    "learning rate": (["--learning-rate", 0.1], "--learning-rate 0.001, and 0.1 is asked for"),
    "unmatched": (["--unmatched", "drop"], "--unmatched error, and drop is asked for"),
    "testing precision": (["--testing-precision", "float64"], "--testing-precision float32, and float64 is asked for"),
    "unknown precision": (["--testing-precision", "float8"], "choose one of float32, float16, float64"),
    "chunk size": (["--DatasetConstructorTask-chunk-size", 77], "--chunk-size 100000, and 77 is asked for"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_w17_a_finished_evaluation_is_held_against_records(chain, case):
    options, sentence = REFUSED[case]
    done = chain.law("run", "ROCCurveTask", *chain.options, *options)
    assert done.returncode == 50
    assert sentence in done.stdout
    assert "Traceback" not in done.stdout


def test_w44_another_test_list_for_a_finished_evaluation(chain, btag_options):
    done = chain.law("run", "ROCCurveTask", *chain.options, "--test-filelist", btag_options["--filelist"])
    assert done.returncode == 50
    assert "give this list another dataset version" in done.stdout


def test_w44_a_version_belongs_to_one_list(chain, btag_options, test_options):
    other = {**btag_options, "--filelist": test_options["--test-filelist"]}
    done = chain.law("run", "TrainingTask", *flat(other), "--loss-weighting", True, "--training-version", "t2")
    assert done.returncode == 50
    assert "give this list another dataset version" in done.stdout


def test_what_the_bits_depend_on_and_a_trace_are_kept(chain, client, run):
    record = json.loads((chain.data_path / TRAINING / "reproducibility.json").read_text())
    (process,) = record["processes"]
    assert (process["ranks"], process["threads"], process["deterministic"], process["seed"]) == (2, 1, True, 123456)
    assert (chain.data_path / TRAINING / "profile/trace.json.gz").stat().st_size > 1000
    kept = {file.path for folder in ("", "profile") for file in client.list_artifacts(run.info.run_id, folder)}
    assert {"reproducibility.json", "profile/trace.json.gz", "profile/operations.txt"} <= kept


@pytest.mark.long
def test_a_loss_that_is_not_finite_is_told_and_replayed(chain, btag_options):
    bad = {**btag_options, "--training-version": "bad", "--learning-rate": 1e30, "--tracking": False}
    refused = chain.law("run", "TrainingTask", *flat(bad))
    assert refused.returncode != 0
    assert "Traceback" not in refused.stdout
    said = " ".join(refused.stdout.split())
    assert "at step 1 (epoch 0, batch 1)" in said, refused.stdout
    (path,) = chain.data_path.glob("TrainingTask/**/bad/**/nonfinite/step_000000001.json")
    assert len(json.loads(path.read_text())["jets"]) == 128
    assert "bhive-mltf replay" in said
    replayed = subprocess.run(
        [Path(sys.executable).with_name("bhive-mltf"), "replay", path],
        env=chain.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert replayed.returncode == 0, replayed.stderr
    assert "with the weights of that step" in replayed.stdout
    assert "first output that is not finite" in replayed.stdout
