"""Construction, training or inference on a disk with one random fault at a time; a line of JSON for each.

`python -m tests.helpers.faulty_phases PHASE MODE FOLDER SEED TRIALS`
"""

import gc
import io
import json
import logging
import random
import shutil
import sys
import threading
import traceback
import warnings
from pathlib import Path

import numpy as np
import torch

from bhive_mltf import config as configs
from bhive_mltf.data.build.construct import construct
from bhive_mltf.data.build.stage import stage_many
from bhive_mltf.data.ntuples.jobs import ReadOptions, StageJob
from bhive_mltf.errors import BhiveError
from bhive_mltf.evaluation import prediction_files
from bhive_mltf.evaluation.inference import InferencePlan, infer
from bhive_mltf.models import registry
from bhive_mltf.testing.jets import write_btag
from bhive_mltf.training.checkpointing import checkpoint
from bhive_mltf.training.launch import launch
from bhive_mltf.training.plan import TrainingPlan
from tests.helpers import faulty_disk

MODEL = "DeepJet"


class World:
    """Where a phase finds its inputs and leaves its outputs, all on the faulty disk."""

    def __init__(self, root, config):
        self.root, self.config = root, config
        self.files = [str(root / "ntuples" / f"{name}.root") for name in ("TT", "QCD")]
        self.set, self.training, self.inference = root / "set", root / "training", root / "inference"

    def construction(self):
        """As the tasks do it: what is staged already is not staged again."""
        jobs = [
            StageJob(self.config, (path,), self.root / "staged" / f"{i}.jets", 1, options=ReadOptions(max_jets=100))
            for i, path in enumerate(self.files)
        ]
        stage_many([job for job in jobs if not job.target.exists()])
        targets = [job.target for job in jobs]
        construct(
            self.config, targets, self.set, chunk_size=300, seed=1, filelist=self.files, code_version="0", threads=2
        )

    def plan(self):
        return TrainingPlan(
            directory=self.training,
            dataset=self.set,
            config=self.config,
            model_name=MODEL,
            epochs=2,
            batch_size=64,
            loss_weighting=True,
            unmatched="drop",
            n_threads=0,
            tracking=False,
            ranks_per_node=1,
            threads_per_rank=1,
            checkpoint_steps=3,
        )

    def train(self):
        launch(self.plan())

    def infer(self):
        plan = InferencePlan(
            directory=self.inference,
            dataset=self.set,
            dataset_sidecar=self.root / "side",
            training=self.training,
            config=self.config,
            model_name=MODEL,
            unmatched="drop",
            batch_size=128,
            n_threads=0,
            threads_per_rank=1,
        )
        dataset, model = plan.open(), plan.model()
        found = infer(plan, dataset, model)
        prediction_files.write(found, self.inference, dataset, [name for name, _ in model.inputs.classes])

    def built(self, root):
        """What was built, read behind the faulty disk; None if it does not look whole."""
        if not (root / "set" / "processed_files.txt").exists():
            return None
        return {path.name: path.read_bytes() for path in (root / "set").iterdir() if path.name[0] != "."}

    def trained(self, root):
        if not (root / "training" / "model_1.pt").exists():
            return None
        state = checkpoint.read_checkpoint(root / "training" / "best_model.pt")
        histories = {name: values for name, values in state["histories"].items() if "time" not in name}
        weights = {name: value.numpy().tobytes() for name, value in state["model_state_dict"].items()}
        return weights, histories

    def inferred(self, root):
        if not (root / "inference" / "prediction.npy").exists():
            return None
        names = ("prediction", "truth", "process", "kinematics", "jet_id")
        return {name: np.load(root / "inference" / f"{name}.npy").tobytes() for name in names}


# phase: what runs, what it leaves, folders it makes
PHASES = {
    "construction": (World.construction, World.built, ("set", "staged")),
    "training": (World.train, World.trained, ("training",)),
    "inference": (World.infer, World.inferred, ("inference",)),
}


class Listener(logging.Handler):
    """Tracebacks in logs, and errors that nobody catches, of threads and destructors too."""

    def __init__(self):
        super().__init__()
        self.heard = []
        logging.getLogger().addHandler(self)
        threading.excepthook = lambda found: self.heard.append(f"thread: {found.exc_value!r}")
        sys.unraisablehook = lambda found: self.heard.append(f"destructor: {found.exc_value!r} in {found.object!r}")

    def emit(self, record):
        if record.exc_info or "Traceback" in record.getMessage():
            self.heard.append(f"log: {record.getMessage()}")


def attempt(function, world):
    """What a phase ends with: "", a refusal, or what is wrong with it."""
    try:
        function(world)
    except BhiveError as error:
        text = str(error)
        return text, "" if "\n" not in text and text else "more than one line"
    except Exception:
        return "", traceback.format_exc()
    return "", ""


def one_trial(disk, world, phase, rng, expected, calls):
    function, result, folders = PHASES[phase]
    for name in folders:
        shutil.rmtree(disk.folder / name, ignore_errors=True)
    disk.forget()
    kinds = [name for name, kind in faulty_disk.FAULTS.items() if calls.get(kind)]
    fault = rng.choice(kinds)
    at, seed = rng.randrange(calls[faulty_disk.FAULTS[fault]]), rng.randrange(2**30)
    disk.arm(fault, at, seed)
    refusal, wrong = attempt(function, world)
    gc.collect()
    struck = disk.disarm()["struck"]
    found = result(world, disk.folder)
    if not wrong and not refusal and found is None:
        wrong = "neither a result nor a refusal"
    if not wrong and found is not None and found != expected:
        wrong = "another result"
    if not wrong and refusal:
        # typed again without the fault, it ends as if nothing had happened
        again, wrong = attempt(function, world)
        found = result(world, disk.folder)
        if again or wrong or found != expected:
            wrong = f"the second time: {again or wrong or 'another result'}"
    return {"fault": fault, "at": at, "seed": seed, "struck": struck, "refusal": refusal, "wrong": wrong}


def main(phase, mode, folder, seed, trials):
    warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.WARNING, stream=io.StringIO())
    torch.set_num_threads(1)
    folder, listener = Path(folder), Listener()
    with faulty_disk.mounted(folder / "behind", folder / "disk", mode) as disk:
        for number, name in enumerate(("TT", "QCD")):
            write_btag(disk.folder / "ntuples" / f"{name}.root", 400, number, name)
        config = configs.load("offline_run3")
        registry.create(MODEL, config)
        world = World(disk.mountpoint, config)
        calls = {}
        for name, (function, result, _) in PHASES.items():
            disk.forget()
            disk.disarm()
            function(world)
            calls[name] = disk.disarm()["calls"]
            expected = result(world, disk.folder)
            if name == phase:
                break
        sys.stderr.write(f"calls: {calls}\n")
        for trial in range(int(trials)):
            rng = random.Random(f"{seed} {phase} {mode} {trial}")
            listener.heard.clear()
            found = one_trial(disk, world, phase, rng, expected, calls[phase])
            if listener.heard and not found["wrong"]:
                found["wrong"] = "; ".join(listener.heard)
            sys.stdout.write(json.dumps({"trial": trial, **found}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
