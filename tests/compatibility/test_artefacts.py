"""Sets, trainings and models of commit a2464a8 (README.md beside this file) are read, continued and repeated."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bhive_mltf import config as configs
from bhive_mltf.data.dataset import open_dataset
from bhive_mltf.data.loader.loader import BatchLoader
from bhive_mltf.models import registry
from bhive_mltf.training.checkpointing import checkpoint

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
EXPECTED = json.loads((HERE / "expected.json").read_text())
KWARGS = {"num_layers": 1, "embed_dim": 8, "num_heads": 2, "dropout": 0.0}
# other processors sum in another order
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def training_in(output):
    (found,) = output.glob("TrainingTask/compat/s/half/**/plan.json")
    return found.parent


def open_set(output, name="compat"):
    config = configs.load(str(HERE / f"{name}.yml"))
    return open_dataset(output / "DatasetConstructorTask" / name / "s", config), config


def predict(model, dataset, config):
    """Logits [B, C] and jet ids [B, 2] of all jets, in stored order."""
    common = {"batch_size": 64, "n_threads": 0, "seed": 1, "weighted": False, "unmatched": "drop", "config": config}
    loader = BatchLoader(dataset, range(len(dataset)), model.inputs, mode="inference", **common)
    model.eval()
    with torch.no_grad():
        found = [(model(batch).numpy(), batch.jet_id.numpy().copy()) for batch in loader.epoch(0)]
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


def trained(path, config):
    state = checkpoint.read_checkpoint(path)
    version = checkpoint.function_version(state)
    model = registry.create("DeepJetTransformer", config, function_version=version, **KWARGS)
    model.load_state_dict(state["model_state_dict"])
    return model


def waves(model):
    """Weights that are the same on every machine: a wave for each tensor, around 1 where a scale is meant."""
    state = {}
    for k, (name, tensor) in enumerate(model.state_dict().items()):
        if not tensor.is_floating_point():
            state[name] = tensor
            continue
        values = 0.2 * np.sin(np.arange(tensor.numel()) * 0.7 + k)
        if name.endswith("running_var") or ("norm" in name and name.endswith("weight")):
            values = values + 1
        state[name] = torch.from_numpy(values.reshape(tensor.shape)).to(tensor.dtype)
    return state


@pytest.mark.parametrize("name", ["compat", "compat_lz4"])
def test_sets_are_read_with_their_digest_and_values(output, expected, name):
    dataset, config = open_set(output, name)
    assert dataset.manifest.digest == EXPECTED["digest"]
    logits, ids = predict(trained(training_in(output) / "best_model.pt", config), dataset, config)
    np.testing.assert_array_equal(ids, expected["jet_ids"])
    np.testing.assert_allclose(logits, expected["half_logits"], **CLOSE)


def test_deepjet_has_the_same_weights_and_logits(output, expected):
    dataset, config = open_set(output)
    model = registry.create("DeepJet", config)
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == EXPECTED["deepjet"]
    model.load_state_dict(waves(model))
    logits, _ = predict(model, dataset, config)
    np.testing.assert_allclose(logits, expected["deepjet_logits"], **CLOSE)


def environment(output):
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "SLURM_"))}
    return {
        **variables,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "DATA_PATH": str(output),
        "LAW_HOME": str(output.parent / "law"),
        "LAW_CONFIG_FILE": str(REPOSITORY / "law.cfg"),
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
    }


def run(command, output):
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment(output), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def check_ended(directory, output, expected):
    """The training ended as one that was never killed."""
    state = checkpoint.read_checkpoint(directory / "model_2.pt")
    for name in ("loss_train", "acc_train", "loss_val", "acc_val"):
        np.testing.assert_allclose(state[name], expected[name], **CLOSE)
    dataset, config = open_set(output)
    logits, _ = predict(trained(directory / "model_2.pt", config), dataset, config)
    np.testing.assert_allclose(logits, expected["whole_logits"], **CLOSE)


@pytest.mark.long
def test_a_rank_continues_the_plan_of_a_queued_job(output, expected):
    directory = training_in(output)
    plan = json.loads((directory / "plan.json").read_text())
    (directory / "plan.json").write_text(json.dumps({**plan, "tracking": False}))
    said = run([sys.executable, "-m", "bhive_mltf.training", str(directory / "plan.json")], output)
    assert "epoch 1/3" not in said
    assert "epoch 3/3" in said
    check_ended(directory, output, expected)


@pytest.mark.long
def test_the_command_typed_again_ends_training_and_run(output, expected):
    from mlflow import MlflowClient

    directory = training_in(output)
    record = json.loads((directory / "run.json").read_text())
    client = MlflowClient(tracking_uri=record["tracking_uri"])
    experiment = client.create_experiment("btag", artifact_location=str(output / "mlartifacts"))
    run_id = client.create_run(experiment).info.run_id
    (directory / "run.json").write_text(json.dumps({**record, "experiment_id": experiment, "run_id": run_id}))
    (output / "list.txt").write_text("/data/jets/QCD/jets.root\n/data/jets/TT/jets.root\n")
    command = ["law", "run", "TrainingTask", "--config", str(HERE / "compat.yml"), "--dataset-version", "s"]
    command += ["--filelist", str(output / "list.txt"), "--model-name", "DeepJetTransformer", "--unmatched", "drop"]
    command += ["--model-kwargs", json.dumps(KWARGS), "--training-version", "half", "--epochs", "3"]
    command += ["--batch-size", "10", "--n-threads", "0", "--TrainingTask-loss-weighting", "True"]
    said = run(["law", "index", "--quiet"], output) + run(command, output)
    assert "epoch 1/3" not in said
    check_ended(directory, output, expected)
    assert json.loads((directory / "run.json").read_text())["run_id"] == run_id
    assert client.get_run(run_id).info.status == "FINISHED"
    last = client.get_metric_history(run_id, "Validation Loss")[-1].value
    assert last == pytest.approx(float(expected["loss_val"]), rel=1e-3)
