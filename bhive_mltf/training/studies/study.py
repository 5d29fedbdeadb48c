"""A study: workers that ask Optuna for parameters, train with them, and tell it the best validation loss.

The study lies in a journal file, which works on network file systems. A trial belongs to whoever holds the lock of its
folder: one whose worker was killed is taken over by the next worker, here or elsewhere, and its training goes on from
its last checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bhive_mltf.errors import LockedError, ParameterError
from bhive_mltf.files import atomic
from bhive_mltf.files.lock import DirectoryLock
from bhive_mltf.ranks.signals import TrainingInterruptedError, handlers
from bhive_mltf.training.studies import space as spaces
from bhive_mltf.training.studies.names import BEST, JOURNAL, TABLE, TRIALS
from bhive_mltf.training.studies.space import Range

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

POLL_S = 1.0
# A training that is asked to stop saves first.
STOP_S = 60.0
MAX_ATTEMPTS = 2
_WARM_UP_TRIALS = 4  # finished ones, before any is pruned
Attempt = Callable[[int, Mapping[str, Any]], "Training"]


@dataclass(frozen=True)
class Training:
    """How a trial trains.

    command : trains, and goes on with a training that was cut. directory : of the training's outputs.
    stop : what else ends it when it is pruned: its job, say.
    close : ends what a command that was killed has left, when the trial is pruned or has failed: job and run.
    """

    command: Sequence[str]
    directory: Path
    stop: Callable[[], None] = lambda: None
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class StudyRequest:
    """A study.

    directory : of its journal, log files and results.
    training : gives the training of a trial from its number and parameters.
    fixed_kwargs : sizes of the model that are not varied.
    workers : trainings at a time, of this command.
    environment : variables that trainings get in addition.
    """

    directory: Path
    name: str
    n_trials: int
    space: Mapping[str, Range]
    training: Attempt
    fixed_kwargs: Mapping[str, Any]
    workers: int
    seed: int
    prune: bool
    environment: Mapping[str, str]


class Study:
    """The trials of a request, as the workers of this process see them."""

    def __init__(self, request: StudyRequest) -> None:
        try:
            import optuna
        except ImportError as error:
            raise ParameterError("a study needs Optuna: pip install 'bhive_mltf[optimize]'") from error
        self.request = request
        request.directory.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        path = str(request.directory / JOURNAL)
        backend = JournalFileBackend(path, lock_obj=JournalFileOpenLock(path))
        self._optuna = optuna
        self.study = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name=request.name,
            load_if_exists=True,
            direction="minimize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=_WARM_UP_TRIALS, n_warmup_steps=1),
        )
        self._hold_space()
        self._mutex = threading.Lock()
        self._stopped = threading.Event()
        self._mine: set[int] = set()
        self._errors: list[Exception] = []

    def _hold_space(self) -> None:
        """Refuse to go on with another space: its trials would not be comparable.

        Raises
        ------
        ParameterError : the study was begun with another one.
        """
        own = spaces.digest(self.request.space)
        known = self.study.user_attrs.get("space")
        if known is None:
            self.study.set_user_attr("space", own)
        elif known != own:
            raise ParameterError(f"study '{self.request.name}' was begun with another space: give it another --study")

    def run(self) -> None:
        """Work until as many trials as asked for have ended, here or in other commands.

        SIGTERM and Ctrl-C stop the trainings, saved.

        Raises
        ------
        TrainingInterruptedError : the study was stopped.
        Exception : what ended a worker; the trainings of the others are stopped, saved.
        """
        threads = [threading.Thread(target=self._work, name=f"worker {n}") for n in range(self.request.workers)]
        for thread in threads:
            thread.start()
        try:
            with handlers((signal.SIGTERM,), lambda *_: self._stopped.set()):
                for thread in threads:
                    while thread.is_alive():
                        thread.join(POLL_S)
        except BaseException:
            self._stopped.set()
            raise
        finally:
            for thread in threads:
                thread.join()
        if self._errors:
            raise self._errors[0]
        if self._stopped.is_set():
            raise TrainingInterruptedError(f"study '{self.request.name}' was stopped: type the command again to go on")

    def _work(self) -> None:
        """What a thread does; its error is raised by `run`."""
        try:
            while not self._stopped.is_set() and self._is_left():
                self._next()
        except Exception as error:  # noqa: BLE001 - raised in the main thread
            self._errors.append(error)
            self._stopped.set()

    def _is_left(self) -> bool:
        """Whether there are trials to begin, or of other commands that run: they may be killed yet."""
        trials = self.study.get_trials(deepcopy=False)
        running = {trial.number for trial in trials if not trial.state.is_finished()}
        return len(trials) < self.request.n_trials or bool(running - self._mine)

    def _next(self) -> None:
        with self._claimed() as number:
            if number is not None:
                try:
                    self._try(number)
                except Exception:
                    logger.exception("trial %d of study %s failed", number, self.request.name)
                    self._tell(number, None, "FAIL")
                return
        self._stopped.wait(POLL_S)

    @contextlib.contextmanager
    def _claimed(self) -> Iterator[int | None]:
        """The number of a trial that is this worker's alone while it lasts; None when there are enough."""
        with contextlib.ExitStack() as stack:
            with self._mutex, DirectoryLock(self.request.directory, wait_s=None):
                number = self._orphan(stack)
                if number is None:
                    number = self._new(stack)
                if number is not None:
                    self._mine.add(number)
            try:
                yield number
            finally:
                self._mine.discard(number if number is not None else -1)

    def _orphan(self, stack: contextlib.ExitStack) -> int | None:
        """A trial that runs, but whose worker is gone."""
        running = self._optuna.trial.TrialState.RUNNING
        for trial in self.study.get_trials(deepcopy=False, states=(running,)):
            if trial.number not in self._mine:
                with contextlib.suppress(LockedError):
                    stack.enter_context(DirectoryLock(self._folder(trial.number), wait_s=0))
                    return int(trial.number)
        return None

    def _new(self, stack: contextlib.ExitStack) -> int | None:
        number = len(self.study.get_trials(deepcopy=False))
        if number >= self.request.n_trials:
            return None
        # a seed for each trial: whichever worker draws it, and however often workers start, the values are the same
        seed = int(np.random.SeedSequence([self.request.seed % 2**32, number]).generate_state(1)[0])
        self.study.sampler = self._optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        trial = self.study.ask({name: found.distribution() for name, found in self.request.space.items()})
        stack.enter_context(DirectoryLock(self._folder(trial.number), wait_s=None))
        return int(trial.number)

    def _folder(self, number: int) -> Path:
        return self.request.directory / TRIALS / f"{number:04d}"

    def _try(self, number: int) -> None:
        """Train until the trial is complete, pruned or failed, or this worker is stopped."""
        values = self.study.get_trials(deepcopy=False)[number].params
        training = self.request.training(number, spaces.parameters(values, self.request.fixed_kwargs))
        for _ in range(MAX_ATTEMPTS):
            code = self._attempt(number, training)
            if code is None:  # stopped: the trial stays, and is taken up again
                return
            losses = validation_losses(training.directory)
            if code == _PRUNED:
                training.close()
                self._tell(number, None, "PRUNED")
                return
            if code == 0 and losses:
                self._report(number, losses)
                self._tell(number, min(losses), "COMPLETE")
                return
            if code > 0:  # it has said why; one that was killed is tried once more
                break
        training.close()
        self._tell(number, None, "FAIL")

    def _attempt(self, number: int, training: Training) -> int | None:
        """Run the command of a training; its exit code, `_PRUNED`, or None when this worker is stopped."""
        environment = {**os.environ, **self.request.environment}
        with (self._folder(number) / "log").open("ab") as log:
            process = subprocess.Popen(
                list(training.command),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                while True:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        return process.wait(POLL_S)
                    if self._stopped.is_set():
                        _end(process)
                        return None
                    if self.request.prune and self._is_hopeless(number, training):
                        training.stop()
                        _end(process)
                        return _PRUNED
            finally:
                _end(process)

    def _is_hopeless(self, number: int, training: Training) -> bool:
        """Whether a trial is worse than the median of the others after as many epochs."""
        losses = validation_losses(training.directory)
        self._report(number, losses)
        return bool(losses) and bool(self._trial(number).should_prune())

    def _trial(self, number: int) -> optuna.Trial:
        return self._optuna.trial.Trial(self.study, self.study.get_trials(deepcopy=False)[number]._trial_id)

    def _report(self, number: int, losses: Sequence[float]) -> None:
        known = self.study.get_trials(deepcopy=False)[number].intermediate_values
        for epoch, loss in enumerate(losses):
            if epoch not in known and not math.isnan(loss):
                self._trial(number).report(loss, epoch)

    def _tell(self, number: int, value: float | None, state: str) -> None:
        if value is not None and not math.isfinite(value):
            value, state = None, "FAIL"
        self.study.tell(number, value, state=self._optuna.trial.TrialState[state])

    def summary(self) -> dict[str, Any]:
        """What came out: how many trials have ended, how many there are by state, and the best one."""
        trials = self.study.get_trials(deepcopy=False)
        states = [trial.state.name for trial in trials]
        done = [trial for trial in trials if trial.state.name == "COMPLETE"]
        best = min(done, key=lambda trial: trial.value or 0.0) if done else None
        return {
            "study": self.request.name,
            "n_trials": sum(trial.state.is_finished() for trial in trials),
            "states": {state: states.count(state) for state in sorted(set(states))},
            "best": None
            if best is None
            else {"number": best.number, "validation_loss": best.value, "parameters": best.params},
        }

    def table(self) -> list[dict[str, Any]]:
        """All trials: number, state, validation loss, parameters, losses by epoch."""
        return [
            {
                "number": trial.number,
                "state": trial.state.name,
                "validation_loss": trial.value if trial.state.name == "COMPLETE" else None,
                "parameters": trial.params,
                "losses": {str(epoch): loss for epoch, loss in sorted(trial.intermediate_values.items())},
            }
            for trial in self.study.get_trials(deepcopy=False)
        ]

    def write(self) -> dict[str, Any]:
        """Write `trials.json` and `best.json`; the content of the latter."""
        atomic.write_json(self.request.directory / TABLE, self.table())
        summary = self.summary()
        atomic.write_json(self.request.directory / BEST, summary)
        return summary


_PRUNED = 1000  # no exit code


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a training to stop and save; kill it when it does not."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sent)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)


def validation_losses(directory: Path) -> list[float]:
    """Validation loss of each round of a training that is done, or runs; empty before the first."""
    try:
        with np.load(directory / "validation_metrics.npz") as arrays:
            return [float(value) for value in arrays["loss"]]
    except (OSError, ValueError, KeyError):
        return []
