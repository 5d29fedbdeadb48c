"""A recorded training done once more: same code, same packages, same jets; and whether the weights are the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from bhive_mltf.errors import DataError, ParameterError, TrainingError
from bhive_mltf.files import atomic
from bhive_mltf.tracking import environment, provenance
from bhive_mltf.tracking.history import differences as compared
from bhive_mltf.tracking.history.snapshot import Snapshot, of_directory
from bhive_mltf.training.checkpointing.checkpoint import BEST_NAME, epoch_path, read_checkpoint
from bhive_mltf.training.plan import TrainingPlan
from bhive_mltf.training.provenance import inputs

CODE, ENVIRONMENT, TRAINING = "code", "environment", "training"
# Packages of this repository: their code is that of the checkout.
_OWN = frozenset({"bhive-mltf", "bhive-mltf-client"})
_NOT_INSTALLED = frozenset({*_OWN, "bhive_mltf"})
_ENTRY = ("-m", "bhive_mltf.training.provenance.rerun")
# Differences that every repetition has.
_EXPECTED = frozenset({"ranks_per_node", "threads_per_rank", "nodes", "tracking", "verbose", "terminal_plot"})
Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """A training to repeat.

    run : as it was recorded. folder : for code, environment and outputs; new or of an earlier try.
    this_environment : run with the interpreter of this command instead of one made from the run's lock.
    this_code : run the code of this command instead of the recorded commit.
    changes : fields of the plan that are to be others.
    """

    run: Snapshot
    folder: Path
    this_environment: bool = False
    this_code: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What came out.

    weights : name of each file of weights that both have -> the tensors that differ in any bit.
    differences : everything recorded that the two do not share.
    since : from which step on the losses differ; None where they agree.
    """

    weights: Mapping[str, tuple[str, ...]]
    differences: tuple[compared.Difference, ...]
    since: compared.Since | None

    @property
    def is_equal(self) -> bool:
        """Whether there are weights to compare, and all are equal bit for bit."""
        return bool(self.weights) and not any(self.weights.values())


def reproduce(request: Request, say: Say) -> Outcome:
    """Do a training again in a folder of its own, and compare; the recorded one is only read.

    Raises
    ------
    DataError : an input is not what it was; names it.
    ParameterError : the run does not record what this takes.
    TrainingError : code or environment cannot be had any more, or the training failed.
    """
    run, folder = request.run, request.folder.absolute()
    plan = _plan(run, folder / TRAINING, request.changes)
    say("inputs")
    wrong = inputs.problems(run.datasets, plan)
    if wrong:
        raise DataError(f"the inputs of run {run.run_id or run.label} are not what they were: {'; '.join(wrong)}")
    code = None if request.this_code else checkout(run, folder / CODE, say)
    python = sys.executable if request.this_environment else make_environment(run, folder / ENVIRONMENT, say)
    say("training")
    _train(plan, python, code, folder)
    return compare(run, of_directory(plan.directory), plan)


def _plan(run: Snapshot, directory: Path, changes: Mapping[str, Any]) -> TrainingPlan:
    """The plan of the repetition, with as many ranks and threads as the run had in the end."""
    if not run.plan:
        raise ParameterError(f"run {run.run_id or run.label} records no plan.json: it cannot be repeated")
    unknown = sorted(set(changes) - set(TrainingPlan.model_fields))
    if unknown:
        raise ParameterError(f"a training plan has no field '{unknown[0]}': give one of {', '.join(run.plan)}")
    processes = run.json("reproducibility.json").get("processes") or [{}]
    ranks, threads = processes[-1].get("ranks"), processes[-1].get("threads")
    own = {"directory": str(directory), "dataset_sidecar": str(directory / "dataset"), "nodes": 1, "tracking": True}
    own |= {"ranks_per_node": ranks} if ranks else {}
    own |= {"threads_per_rank": threads} if threads else {}
    return TrainingPlan.model_validate_json(json.dumps({**run.plan, **own, **changes}))


def checkout(run: Snapshot, target: Path, say: Say) -> Path | None:
    """The code of a run, changes included, as a checkout in `target`; None for code that was an installed package.

    Raises
    ------
    TrainingError : no repository at hand has the commit, or the changes do not fit.
    """
    git = run.facts.get("git", {})
    commit = str(git.get("commit", ""))
    if not commit:
        return None
    patch = run.texts.get(provenance.PATCH, "")
    if git.get("dirty") and not patch:
        say("the checkout had changes that were not recorded: they are left out")
    say(f"code: commit {commit[:12]}{' with its changes' if patch else ''}")
    if not (target / ".git").exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        origin = _repository(git, commit)
        _call(["git", "clone", "--quiet", "--no-checkout", origin, str(target)], f"{origin} cannot be cloned")
    _call(
        ["git", "-C", str(target), "checkout", "--quiet", "--force", "--detach", commit],
        f"commit {commit} cannot be checked out in {target}",
    )
    _call(["git", "-C", str(target), "clean", "-qfd"], f"{target} cannot be cleaned")
    refused = provenance.apply_patch(target, patch) if patch else ""
    if refused:
        raise TrainingError(f"the changes of the run do not fit commit {commit} ({refused}): pass --this-code")
    return target


def _repository(git: Mapping[str, Any], commit: str) -> str:
    """A repository that has the commit: the run's own checkout, that of this code, else the remote one."""
    here = environment.git_state().get("checkout", "")
    for place in (git.get("checkout"), here):
        if place and environment.git(Path(str(place)), "cat-file", "-e", f"{commit}^{{commit}}") is not None:
            return str(place)
    if git.get("repository"):
        return str(git["repository"])
    raise TrainingError(f"no repository here has commit {commit}: fetch it, or pass --this-code")


def make_environment(run: Snapshot, target: Path, say: Say) -> str:
    """The interpreter of an environment with the packages of the run's lock.

    Raises
    ------
    ParameterError : the run has no lock.
    TrainingError : the packages cannot be installed, or Python is another one.
    """
    text = run.texts.get(provenance.LOCK, "")
    if not text:
        raise ParameterError(f"run {run.run_id or run.label} records no {provenance.LOCK}: pass --here")
    wanted, own = str(run.facts.get("machine", {}).get("python", "")), environment.machine()["python"]
    if wanted and wanted.rpartition(".")[0] != str(own).rpartition(".")[0]:
        raise TrainingError(f"the run used Python {wanted}, this is {own}: type the command with that one, or --here")
    python, done = target / "bin" / "python", target / "installed.lock"
    if not (done.is_file() and done.read_text(encoding="utf-8") == text):
        say(f"environment: {target}")
        _call([sys.executable, "-m", "venv", "--clear", str(target)], f"{target} cannot be made")
        requirements = target / "requirements.txt"
        lines = requirements_of(text, str(run.facts.get("git", {}).get("checkout", "")), say)
        atomic.write_text(requirements, "\n".join(lines) + "\n")
        _call(
            [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(requirements)],
            f"the packages of {requirements} cannot be installed",
        )
        atomic.write_text(done, text)
    return str(python)


def requirements_of(lock: str, checkout: str, say: Say) -> list[str]:
    """Lines for pip from a lock, without what is part of the run's checkout, whose code is had by git.

    Parameters
    ----------
    checkout : folder of the run's code; empty where it was no checkout.
    """
    origins, found = provenance.read_origins(lock), []
    for name, (version, _) in provenance.read_lock(lock).items():
        origin = origins.get(name, "")
        folder = Path(unquote(urlsplit(origin).path)) if origin.startswith("file:") else None
        if name in _OWN or (folder is not None and checkout and folder.is_relative_to(checkout)):
            continue
        if folder is not None and not folder.exists():
            say(f"{name} {version} was installed from {folder}, which is gone: it is left out")
            continue
        found.append(f"{name} @ {origin}" if origin else f"{name}=={version}")
    return found


def _call(command: list[str], trouble: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).splitlines()
        told = [line for line in lines if line.startswith("ERROR")] or lines
        said = " ".join(" ".join(told).split())[-400:]
        raise TrainingError(f"{trouble} ({said}): mend that, or pass --here or --this-code")


def _train(plan: TrainingPlan, python: str, code: Path | None, folder: Path) -> None:
    path = plan.write()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    source = code or (Path(__file__).parents[3] if python != sys.executable else None)
    if source is not None:
        kept["PYTHONPATH"] = str(source)
    done = subprocess.run([python, *_ENTRY, str(path)], env=kept, cwd=folder, check=False)
    if done.returncode:
        raise TrainingError(f"the repetition in {plan.directory} ended with exit code {done.returncode}: see above")


def compare(run: Snapshot, again: Snapshot, plan: TrainingPlan) -> Outcome:
    """Weights, records and losses of a run and of its repetition."""
    found: dict[str, tuple[str, ...]] = {}
    for name in (BEST_NAME, epoch_path(plan.directory, plan.last_number).name):
        first, second = (None if one.directory is None else one.directory / name for one in (run, again))
        if first is not None and second is not None and first.is_file() and second.is_file():
            found[name] = tuple(_unequal(first, second))
    listed = [one for one in compared.differences([run, again]) if not _is_expected(one)]
    since = compared.first_difference(run.series.get(compared.LOSS, {}), again.series.get(compared.LOSS, {}))
    return Outcome(found, tuple(listed), since)


def _is_expected(found: compared.Difference) -> bool:
    """Whether every repetition differs in this: what is technical, no test set, and code that is not installed."""
    if found.topic == "data":
        return found.name.startswith("test set,") and not found.values[1].strip("-")
    return found.name in _EXPECTED or (found.name in _NOT_INSTALLED and not found.values[1].strip("-"))


def _unequal(one: Path, other: Path) -> list[str]:
    """Names of tensors of the model that differ in any bit, or that only one of the files has."""
    first, second = _bits(one), _bits(other)
    return [name for name in sorted({*first, *second}) if first.get(name) != second.get(name)]


def _bits(path: Path) -> dict[str, tuple[object, ...]]:
    """Shape, type and bytes of each tensor of the model: NaN equals NaN there, and zero is not minus zero."""
    state = read_checkpoint(path)["model_state_dict"]
    return {name: (value.shape, value.dtype, value.contiguous().numpy().tobytes()) for name, value in state.items()}
