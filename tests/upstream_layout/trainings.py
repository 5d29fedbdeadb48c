"""Trainings of the layout as a user types them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from bhive_mltf.data.block import JetBlock
from bhive_mltf.data.layouts.lz4_rows import LZ4ShardWriter
from bhive_mltf.data.schema import GLOBAL, GroupSchema, Schema
from bhive_mltf.tracking import store
from tests.helpers.commands import REPOSITORY, TIMEOUT

TRUTHS = ("isB", "isC", "isUDS", "isG")
SCHEMA = Schema(
    groups=(GroupSchema(GLOBAL, ("jet_pt", "jet_eta", "n"), 1), GroupSchema("cpf", ("px", "py", "d0"), 4)),
    truths=TRUTHS,
    processes=("default",),
)
CONFIG = {
    "global_features": list(SCHEMA.groups[0].columns),
    "cpf_candidates": list(SCHEMA.groups[1].columns),
    "n_cpf_candidates": SCHEMA.groups[1].length,
    "truths": list(TRUTHS),
}
BATCH = 32


def write_set(data_path, n_files=4, n_jets=BATCH):
    """A training set in upstream's layout, by our writer: each file is a batch."""
    folder = data_path / "DatasetConstructorTask/default/v1"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    names = []
    for number in range(n_files):
        writer = LZ4ShardWriter(folder / f"file_{number}.lz4", SCHEMA, n_jets)
        writer.append(block(rng, n_jets))
        writer.close()
        names.append(str(folder / f"file_{number}.lz4"))
    (folder / "processed_files.txt").write_text("\n".join(names))
    np.save(folder / "histogram.npy", np.ones((len(TRUTHS), 1, 1), np.float32))
    sizes = {"chunk_size": [n_jets] * n_files, "sum_weight": [n_jets] * n_files}
    (folder / "weights.json").write_text(json.dumps(sizes))
    (data_path / "config.json").write_text(json.dumps(CONFIG))


def block(rng, n_jets):
    """Jets whose features tell their class."""
    label = np.arange(n_jets) % len(TRUTHS)
    counts = rng.integers(1, 5, n_jets).astype(np.int32)
    jets = rng.normal(size=(n_jets, 3)) + label[:, None]
    candidates = rng.normal(size=(counts.sum(), 3)) + np.repeat(label, counts)[:, None]
    return JetBlock(
        features={GLOBAL: jets.astype(np.float32), "cpf": candidates.astype(np.float32)},
        counts={"cpf": counts},
        truth=np.eye(len(TRUTHS), dtype=np.bool_)[label],
        process=np.zeros(n_jets, np.int16),
        weight=np.full(n_jets, 0.5, np.float32),
        jet_id=np.zeros((n_jets, 2), np.int64),
        kinematics=jets[:, :2].astype(np.float32),
    )


class Layout:
    """A checkout of the layout with a folder of outputs; `env` for the commands typed in it."""

    def __init__(self, tree, data_path, **env):
        self.tree, self.data_path = tree, data_path
        # the package without the modules `tasks` of this checkout
        library = tree / "library"
        library.mkdir()
        (library / "bhive_mltf").symlink_to(REPOSITORY / "bhive_mltf")
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("MLFLOW_", "LAW_", "BHIVE_", "SLURM_"))}
        self.environment = {
            **kept,
            "DATA_PATH": str(data_path),
            "LAW_HOME": str(tree / ".law"),
            "LAW_CONFIG_FILE": str(tree / "law.cfg"),
            "B_HIVE_DIR": str(tree),
            "PYTHONPATH": os.pathsep.join((str(tree), str(library))),
            "OMP_NUM_THREADS": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            **env,
        }

    def command(self, *options):
        """The command of a training of three epochs."""
        law = str(Path(sys.executable).with_name("law"))
        fixed = ("--model-name", "Small", "--dataset-version", "v1", "--epochs", 3, "--batch-size", BATCH)
        # luigi lets no second command of the same words begin: another test may have typed it in another tree
        own_lock = ("--lock-pid-dir", self.tree / "locks")
        rest = ("--n-threads", 1, "--loss-weighting", "True", "--train-val-split", 0.75, *own_lock)
        all_options = (*fixed, *rest, "--training-precision", "float64", *options)
        return [law, "run", "tasks.training.TrainingTask", *map(str, all_options)]

    def train(self, *options, **env):
        """Its output and exit code."""
        return subprocess.run(
            self.command(*options), env={**self.environment, **env}, cwd=self.tree, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT, check=False,
        )  # fmt: skip

    def haunt(self, ghost):
        """See `haunt` of the layout's base model."""
        (self.data_path / "ghost").write_text(ghost)

    @property
    def directory(self):
        return self.data_path / "TrainingTask/default/v1/training_version_01/Small/epochs_3/nominal"

    def weights(self, epoch=2):
        return torch.load(self.directory / f"model_{epoch}.pt", weights_only=False)["model_state_dict"]

    def run(self):
        """The one run of all that was tracked."""
        from mlflow import MlflowClient

        client = MlflowClient(store.tracking_uri(self.data_path))
        (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
        return client, run
