"""Trainings by law on the lab cluster: a shell as a user has it, and what can be seen of the job."""

import json
import re
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from bhive_mltf.slurm.batch_step.attempts import read_attempts
from bhive_mltf.slurm.record import JobRecord
from bhive_mltf.slurm.states import JobState
from bhive_mltf.tracking.store import RunRecord
from tests.helpers.commands import REPOSITORY, Sandbox, flat
from tests.helpers.waiting import wait_for

# two ranks on two nodes: cheap, and still several nodes
TWO = {"slurm": "local-lab", "nodes": 2, "ranks_per_node": 1, "checkpoint_steps": 1}


def write_profile(path, **values):
    """A profile of the lab with other values; its path."""
    content = yaml.safe_load((REPOSITORY / "configs/facility/local-lab.yml").read_text())
    path.write_text(yaml.safe_dump({**content, **values}))
    return path


class Shell(Sandbox):
    """A login node of the lab."""

    def __init__(self, folder, law_home, cluster, filelist):
        super().__init__(folder, law_home)
        self.cluster, self.started = cluster, []
        self.environment |= {"BHIVE_SLURM_LAB": str(cluster.directory), "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "10"}
        self.environment.pop("SLURM_CONF", None)
        self.options = {
            "--config": "offline_run3",
            "--model-name": "DeepJet",
            "--dataset-version": "v1",
            "--filelist": filelist,
            "--epochs": 2,
            "--batch-size": 64,
            "--n-threads": 0,
            "--loss-weighting": True,
        }

    def follow(self, command, **environment):
        """Start a command in a process group of its own; it is ended with the shell."""
        process = subprocess.Popen(
            command,
            env={**self.environment, **environment},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def start(self, *arguments):
        """Start a task."""
        return self.follow(self.command("run", *arguments))

    def close(self):
        """End what a failed test left."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.communicate()

    def cli(self, *arguments):
        """Run `bhive-mltf`."""
        return subprocess.run(
            [str(Path(sys.executable).with_name("bhive-mltf")), *arguments],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )

    def training(self, version, **options):
        return Training(self, version, options)

    def local(self, version, n_ranks):
        """A training of some ranks without a batch system, done."""
        training = self.training(version, ranks_per_node=n_ranks, tracking=False)
        done = training.run()
        assert done.returncode == 0, done.stdout
        return training


class Training:
    """One training of a shell, and its job."""

    def __init__(self, shell, version, options):
        self.shell, self.version = shell, version
        given = {f"--{name.replace('_', '-')}": value for name, value in options.items()}
        self.options = flat({**shell.options, "--training-version": version, **given})
        epochs = given.get("--epochs", shell.options["--epochs"])
        dataset = given.get("--dataset-version", shell.options["--dataset-version"])
        folder = shell.data_path / "TrainingTask/offline_run3" / dataset / version
        model = given.get("--model-name", shell.options["--model-name"]).replace(":", ".")
        self.directory = folder / f"{model}/epochs_{epochs}/nominal"

    def run(self, **environment):
        return self.shell.law("run", "TrainingTask", *self.options, **environment)

    def start(self, *before, **environment):
        """Type the command; `before` is what it is started with."""
        return self.shell.follow([*before, *self.shell.command("run", "TrainingTask", *self.options)], **environment)

    def job_id(self, seconds=240):
        return wait_for(lambda: (record := JobRecord.read(self.directory)) and record.job_id, seconds, "a job id")

    def record(self):
        return JobRecord.read(self.directory)

    def step(self):
        """Steps that are saved; -1 for none."""
        saved = [int(path.stem.removeprefix("step_")) for path in self.directory.glob("checkpoints/step_*.pt")]
        return max(saved, default=-1)

    def wait_for_step(self, step, seconds=300):
        return wait_for(lambda: self.step() >= step, seconds, f"step {step}")

    def attempts(self):
        return read_attempts(self.directory / "slurm")

    def wait_for_attempt(self, number, seconds=240):
        wait_for(lambda: len(self.attempts()) >= number, seconds, f"attempt {number}")

    def attempt_steps(self, attempt, seconds=300):
        """Wait until this attempt has trained and saved a step; the attempts are numbered from 1."""
        log, before = self.directory / "logs/rank_0.log", self.step()

        def trains():
            text = log.read_text() if log.exists() else ""
            return text.count("training DeepJet for") >= attempt

        wait_for(trains, seconds, f"the ranks of attempt {attempt}")
        self.wait_for_step(before + 1, seconds)

    def beginnings(self):
        """Starts of the ranks that did not go on from a checkpoint."""
        lines = (self.directory / "logs/rank_0.log").read_text().splitlines()
        return [line for line in lines if re.search(r"training \S+ for \d+ epochs with \d ranks$", line)]

    def weights(self):
        state = torch.load(self.directory / "best_model.pt", weights_only=True)
        return state["model_state_dict"], state["histories"]["loss_val"]

    def outcome(self):
        return json.loads((self.directory / "slurm/outcome.json").read_text())

    def mlflow_run(self):
        """The run, the number of runs of the training, and the most values of one metric at one step."""
        from mlflow import MlflowClient

        record = RunRecord.read(self.directory)
        client = MlflowClient(record.tracking_uri)
        run = client.get_run(record.run_id)
        name = run.data.tags["mlflow.runName"]
        runs = [r for r in client.search_runs([record.experiment_id]) if r.data.tags["mlflow.runName"] == name]
        values = [
            len([point for point in points if point.step == step])
            for key in run.data.metrics
            if not key.startswith("system/")
            for points in [client.get_metric_history(record.run_id, key)]
            for step in {point.step for point in points}
        ]
        return run, len(runs), max(values, default=0)


def assert_same_weights(one, two):
    (first, losses), (second, other_losses) = one.weights(), two.weights()
    assert losses == other_losses
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def assert_finished(training, attempts):
    """One run, FINISHED, one value per step, all attempts tagged; one job, COMPLETED, started again for each."""
    run, runs, values = training.mlflow_run()
    assert (run.info.status, runs, values) == ("FINISHED", 1, 1)
    tagged = {name for name in run.data.tags if name.startswith("slurm_attempt_")}
    assert tagged == {f"slurm_attempt_{number}" for number in range(1, attempts + 1)}
    assert len(training.attempts()) == attempts
    assert training.outcome()["outcome"] == "done"
    assert len(training.beginnings()) == 1, "only the first attempt to train begins anew"
    record = JobRecord.read(training.directory)
    assert (record.state, record.restarts, record.attempts) == (JobState.COMPLETED, attempts - 1, ())


def assert_system_series(training, other_node, attempts):
    """The load of both nodes in the one run: steps without a gap, and a point of each attempt."""
    from mlflow import MlflowClient

    record = RunRecord.read(training.directory)
    client = MlflowClient(record.tracking_uri)
    starts = [attempt.start for attempt in training.attempts()]
    for name in ("system/cpu_utilization_percentage", f"system/{other_node}/cpu_utilization_percentage"):
        points = client.get_metric_history(record.run_id, name)
        assert [point.step for point in points] == list(range(len(points))), name
        begun = [sum(point.timestamp / 1000 >= start for start in starts) for point in points]
        assert set(begun) == set(range(1, attempts + 1)), (name, begun)


def read_until(process, words):
    """Read what a process says up to a line with these words."""
    assert any(words in line for line in iter(process.stdout.readline, "")), f"it never said {words!r}"


def ended(command, seconds=400):
    """Output and exit code of a command that was started."""
    output, _ = command.communicate(timeout=seconds)
    return output, command.returncode


def python(*arguments):
    return [sys.executable, *arguments]
