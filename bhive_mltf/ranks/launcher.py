"""Starting several ranks on one machine, by torch's own elastic launcher and without restarts.

The same command, typed again, goes on.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from bhive_mltf import compat
from bhive_mltf.ranks.failures import explain
from bhive_mltf.ranks.files import LOG_FOLDER, log_path, prepare_logs
from bhive_mltf.ranks.process import LAUNCHER_VARIABLE
from bhive_mltf.ranks.signals import TrainingInterruptedError, handlers

# How long ranks have to save when asked to stop, or to end when another one failed.
SHUTDOWN_SECONDS = 15
# Not SIGHUP: torch would undo what nohup did.
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# They tell a user what the error of `LocalRanks.launch` says in one sentence.
_TALKATIVE = ("torch.distributed.elastic.multiprocessing.api", "torch.distributed.elastic.agent.server.api")


@dataclass(frozen=True)
class LaunchRequest:
    """Ranks to start.

    directory : of their outputs, where logs and errors go, see `ranks.files`.
    plan : file that is the last argument of each rank.
    ranks_per_node : how many to start on each machine, at least 1.
    """

    directory: Path
    plan: Path
    ranks_per_node: int


class Launcher(Protocol):
    """Starts ranks and waits for them."""

    def launch(self, request: LaunchRequest) -> None:
        """Return when all ranks have done their work; raise when they have not."""


@dataclass(frozen=True)
class LocalRanks:
    """Several ranks on this machine.

    entrypoint : command of a rank, without the plan; what : that the ranks do, for messages.
    """

    entrypoint: Sequence[str]
    what: str = "training"

    def launch(self, request: LaunchRequest) -> None:
        """Start the ranks and wait.

        Raises
        ------
        RankFailedError : a rank failed; all others have ended. Names rank, reason and traceback.
        TrainingInterruptedError : the ranks were asked to stop, and saved.
        """
        size = request.ranks_per_node
        prepare_logs(request.directory, size)
        config = compat.launch_config(
            _SIGNALS,
            SHUTDOWN_SECONDS,
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=size,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            logs_specs=_RankLogs(request.directory / LOG_FOLDER),
            log_line_prefix_template="[rank ${rank}] ",
        )
        failure = _run_agent(config, [*self.entrypoint, str(request.plan)])
        if isinstance(failure, signal.Signals):
            raise TrainingInterruptedError(
                f"The {self.what} in {request.directory} was stopped by {failure.name}: the same command goes on",
                received=failure,
            )
        if failure:
            raise explain(request.directory, size, failure, self.what)


def _run_agent(config: LaunchConfig, command: Sequence[str]) -> Mapping[int, ProcessFailure] | signal.Signals:
    """Start the ranks and wait; what failed by rank, empty if nothing did, or the signal that came."""
    # torch leaves the files of the ranks' logs to the garbage collector
    with _surroundings(), compat.ignored_signals(), warnings.catch_warnings(action="ignore", category=ResourceWarning):
        try:
            elastic_launch(config, command[0])(*command[1:])
        except ChildFailedError as error:
            return dict(error.failures)
        except SignalException as error:
            return signal.Signals(error.sigval)
    return {}


@contextmanager
def _surroundings() -> Iterator[None]:
    """Environment, signal handlers and log levels while ranks run; put back afterwards."""
    environment = {LAUNCHER_VARIABLE: str(os.getpid())}
    if sys.platform == "linux":
        # ranks of one machine talk over loopback, whatever its name resolves to
        environment["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    levels = {name: logging.getLogger(name).level for name in _TALKATIVE}
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with handlers(_SIGNALS):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


class _RankLogs(LogsSpecs):
    """Errors of each rank to `logs/rank_<r>.log`; those of rank 0 to the terminal too, its output only there."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self._folder = folder

    @property
    def root_log_dir(self) -> str:
        return str(self._folder)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        ranks = {local: int(env["RANK"]) for local, env in envs.items()}
        stderrs = {local: str(log_path(self._folder.parent, rank)) for local, rank in ranks.items()}
        stdouts = {local: "" if rank == 0 else os.devnull for local, rank in ranks.items()}
        shown = {local: stderrs[local] for local, rank in ranks.items() if rank == 0}
        errors = dict.fromkeys(envs, os.devnull)
        return compat.logs_dest(stdouts, stderrs, shown, errors, os.devnull)
