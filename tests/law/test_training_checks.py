"""What TrainingTask refuses before anything runs, each in one sentence. One process looks at all cases."""

import json
import subprocess
import sys

import pytest

from tests.helpers.commands import REPOSITORY, Sandbox

COMMON = {"config": "offline_run3", "model_name": "DeepJet", "dataset_version": "v1"}
REFUSED = {
    "no epoch": ({"epochs": 0}, "--epochs 0 trains nothing: give 1 or more, or --use-iterations True"),
    "both": ({"use_iterations": True, "total_iterations": 5, "epochs": 2}, "epochs is 2, but must be 0"),
    "no iterations": ({"use_iterations": True, "epochs": 0}, "total_iterations is 0, but must be at least 1"),
    "unused iterations": ({"total_iterations": 5}, "total_iterations is 5, but must be 0 without use_iterations"),
    "commands": ({"restart": True, "resume_epoch": 1}, "--restart True begins anew and --resume-epoch 1 keeps epochs"),
    "w44": ({"val_dataset_version": "v1"}, "--val-dataset-version and --dataset-version are both 'v1'"),
    "list alone": ({"val_filelist": "a.txt"}, "--val-filelist a.txt: give the set a --val-dataset-version"),
    "split": (
        {"val_dataset_version": "v2", "train_val_split": 0.5},
        "--train-val-split 0.5 has no meaning with --val-dataset-version v2",
    ),
    "weight decay": ({"optimizer": "LBFGS", "weight_decay": 0.1}, "weight_decay is 0.1, but must be left out"),
    "optimizer": ({"optimizer": "Adamw"}, "optimizer is 'Adamw', but must be one of ASGD"),
    "schedule": ({"lr_scheduler": "cosine"}, "lr_scheduler is 'cosine', but must be one of epoch_lin_decay"),
    "attack": ({"attack": "fgsm"}, "attack is 'fgsm', but must be one of nominal, pgd, jetfool, optimizer"),
    "no magnitude": ({"attack": "pgd"}, "attack_magnitude is 0, but must be above 0 for pgd"),
    "plain loss": (
        {"config": "part_run3_lt", "model_name": "UParT_v0"},
        "model UParT_v0 (pt, pt_q16, pt_q84, pt_with_neutrinos): take --loss-function CrossEntropyLogCosh",
    ),
    "loss of regression": (
        {"loss_function": "CrossEntropyLogCosh"},
        "fits regression outputs too, which model DeepJet does not have: take --loss-function CrossEntropyLoss",
    ),
    "w20": ({"model_name": "LZ4PAIReDTagger"}, "'LZ4PAIReDTagger' is one of B-Hive's that this package does not have"),
    "foreign model": ({"model_name": "no.such:Model"}, "there is no module 'no'; install its package"),
    "d11": ({"model_name": "tests.models.test_upstream:TwoTasks"}, "model TwoTasks gives a tuple where logits"),
    "d11 whatever the loss": (
        {"model_name": "tests.models.test_upstream:TwoTasks", "loss_function": "CrossEntropyLogCosh"},
        "model TwoTasks gives a tuple where logits",
    ),
    "weights that are not there": ({"start_from": "none.pt"}, "the weights in "),
    "w21": (
        {"config": "hlt_run3", "model_name": "ParticleTransformer"},
        "model ParticleTransformer needs the group 'npf', which config 'hlt_run3' does not have",
    ),
    "w32 test_offline 4": (
        {"model_name": "ParticleTransformer"},
        "model ParticleTransformer needs four-vectors; config",
    ),
    "graphs of shapes": (
        {
            "config": "part_run3",
            "model_name": "ParticleTransformer",
            "use_torch_compile": True,
            "torch_compile_mode": "reduce-overhead",
        },
        "each batch of ParticleTransformer has a shape of its own: take 'default' or 'max-autotune-no-cudagraphs'",
    ),
    "negative": ({"epochs": -1}, "--epochs -1: it must be 0 or more"),
}


ACCEPTED = {
    "by iterations": {"use_iterations": True, "total_iterations": 5, "n_iters_per_save": 2, "epochs": 0},
    "validation set": {"val_dataset_version": "v2", "val_filelist": "a.txt"},
    "Ranger": {"optimizer": "Ranger", "lr_scheduler": "batch_exp_decay", "weight_decay": 0.0},
    "pgd": {"attack": "pgd", "attack_magnitude": 0.01, "attack_restrict_impact": 0.2},
    "multi-task": {
        "config": "hlt_run3",
        "model_name": "UParticleNet_InProHLT",
        "loss_function": "CrossEntropyLogCoshHLT",
        "loss_weighting": True,
    },
    "test_offline 4 on part_run3": {
        "config": "part_run3",
        "model_name": "ParticleTransformer",
        "optimizer": "RAdam",
        "attack": "jetfool",
        "attack_magnitude": 0.1,
        "use_torch_compile": True,
        "mixed_precision": True,
    },
    "graphs": {"use_torch_compile": True, "torch_compile_mode": "reduce-overhead"},
    "graphs that are not asked for": {
        "config": "part_run3",
        "model_name": "ParticleTransformer",
        "torch_compile_mode": "reduce-overhead",
    },
    "on and on": {"resume_epoch": 1, "extend_training": 2, "resume_training": True},
}
LOOK = """
import json, sys
from pathlib import Path
from bhive_mltf import config
from bhive_mltf.files.records import Record
from bhive_mltf.law.tasks.dataset import DatasetConstructorTask
from bhive_mltf.law.tasks.training import TrainingTask
from bhive_mltf.errors import BhiveError

def look(values):
    try:
        task = TrainingTask(**values)
        task.check()
        task.check_to_run()
    except BhiveError as error:
        return str(error)
    return ""

def of_a_set_made_with_processes():
    options = {"config": "offline_run3", "dataset_version": "former"}
    task, training = DatasetConstructorTask(**options), TrainingTask(**options, model_name="DeepJet")
    before = task.load_config().processes
    for target in task.output().values():
        Path(target.path).parent.mkdir(parents=True, exist_ok=True)
        Path(target.path).touch()
    former = config.load("offline_run3").model_copy(update={"processes": ("TT", "QCD")})
    Record.new({"config": former.dataset_digest}).write(task.local_path())
    return [before, task.load_config().processes, training.load_config().processes]

said = {name: look(values) for name, values in json.load(sys.stdin).items()}
print(json.dumps({**said, "processes": of_a_set_made_with_processes()}))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What TrainingTask says to each case; empty where it accepts it."""
    sandbox = Sandbox(tmp_path_factory.mktemp("checks"), tmp_path_factory.mktemp("law"))
    values = {**{name: values for name, (values, _) in REFUSED.items()}, **ACCEPTED}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOOK],
        input=json.dumps({name: {**COMMON, **one} for name, one in values.items()}),
        env=sandbox.environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", REFUSED)
def test_combinations_that_cannot_be(said, case):
    assert REFUSED[case][1] in said[case]
    assert "\n" not in said[case]


def test_d07_a_set_made_with_processes_keeps_them(said):
    assert said["processes"] == [["default"], ["TT", "QCD"], ["TT", "QCD"]]


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_can_be_is_accepted(said, case):
    assert said[case] == ""
