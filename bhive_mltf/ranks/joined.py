"""Ranks in places that something else has started, such as torchrun or the gateway: one command leads, all compute.

Every place runs the same command by `join`. Only that of rank 0 is really started; when it needs ranks (`JoinedRanks`
takes the place of `LocalRanks` then), each place runs one of them. Places talk through torch's TCPStore at MASTER_ADDR
and MASTER_PORT, which the ranks use to meet as well.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, Self

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import ProcessFailure

from bhive_mltf.errors import ParameterError
from bhive_mltf.ranks.failures import explain
from bhive_mltf.ranks.files import log_path, prepare_logs
from bhive_mltf.ranks.launcher import SHUTDOWN_SECONDS, LaunchRequest
from bhive_mltf.ranks.signals import INTERRUPTED_EXIT_CODE, TrainingInterruptedError, handlers

# Set for the command that leads: where it stands, as JSON.
VARIABLE = "BHIVE_MLTF_JOINED"
# How long places wait for each other at the beginning: one may still prepare its container.
MEETING_S = 600.0
_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_POLL_S = 0.2
_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
Store = Any  # of torch, which has no types
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a process stands among those that were started together.

    rank, size : of all; local_rank, local_size : of those on its machine; address, port : where they meet.
    hosts_store : rank 0 makes the store there; torchrun has made one.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    hosts_store: bool = True

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        """The place that torchrun, or whoever else, has given to this process.

        Raises
        ------
        ParameterError : a variable is missing, or is no number.
        """
        missing = [name for name in _NAMES if not environment.get(name)]
        if missing:
            raise ParameterError(
                f"{', '.join(missing)} not set: start 'bhive-mltf join' by torchrun, or by what sets the same variables"
            )
        try:
            rank, size, local_rank, local_size, port = (int(environment[n]) for n in (*_NAMES[:4], "MASTER_PORT"))
        except ValueError as error:
            raise ParameterError(f"one of {', '.join(_NAMES[:4])}, MASTER_PORT is no number: {error}") from None
        own = environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        return cls(rank, size, local_rank, local_size, environment["MASTER_ADDR"], port, own)

    @classmethod
    def of_leader(cls) -> Self | None:
        """The place of the command that leads, which this process is; None outside."""
        given = os.environ.get(VARIABLE)
        return cls(**json.loads(given)) if given else None

    @property
    def nodes(self) -> int:
        """Machines that take part."""
        return self.size // self.local_size

    def store(self, *, is_master: bool = False) -> Store:
        """The store at which all meet.

        Raises
        ------
        torch.distributed.DistError : the others did not come.
        """
        library: Any = dist
        found = library.TCPStore(
            self.address,
            self.port,
            is_master=is_master and self.hosts_store,
            wait_for_workers=False,
            timeout=timedelta(seconds=MEETING_S),
        )
        return library.PrefixStore("bhive_mltf/joined", found)

    def variables(self, number: int) -> dict[str, str]:
        """Of the rank that runs here, in the start of ranks with this number."""
        values = (self.rank, self.size, self.local_rank, self.local_size, self.address, self.port)
        named = dict(zip(_NAMES, map(str, values), strict=True))
        # the store is there, and each start has a part of it for itself
        return {**named, "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": str(number)}


@dataclass(frozen=True)
class JoinedRanks:
    """Launcher of ranks in the places of a `join`, for the command that leads.

    entrypoint : command of a rank, without the plan; what : that the ranks do, for messages.
    """

    place: Place
    entrypoint: Sequence[str]
    what: str = "training"

    def launch(self, request: LaunchRequest) -> None:
        """Have each place run its rank, and wait.

        Raises
        ------
        RankFailedError, TrainingInterruptedError : as `LocalRanks.launch`.
        """
        prepare_logs(request.directory, self.place.size)
        store = self.place.store()
        number = store.add("starts", 1)
        order = {"command": [*self.entrypoint, str(request.plan)], "directory": str(request.directory)}
        store.set(f"start/{number}", json.dumps(order))
        with _rank(self.place, number, order) as rank:
            codes = _wait_for_all(store, self.place, number, rank)
        if any(code == INTERRUPTED_EXIT_CODE for code in codes.values()):
            store.set("stopped", "1")
            raise TrainingInterruptedError(
                f"The {self.what} in {request.directory} was stopped by a signal: the same command goes on"
            )
        failed = {
            rank: ProcessFailure(local_rank=rank, pid=0, exitcode=code, error_file=os.devnull)
            for rank, code in codes.items()
            if code
        }
        if failed:
            raise explain(request.directory, self.place.size, failed, self.what)


def join(command: Sequence[str]) -> int:
    """Take part: lead the command, or run ranks for the one that leads; the exit code, the same in all places.

    It is 75 when ranks were stopped by a signal with everything saved. SIGUSR2 and SIGTERM are handed on to the ranks.

    Raises
    ------
    ParameterError : this process was given no place.
    """
    place = Place.of(os.environ)
    return _lead(place, command) if place.rank == 0 else _follow(place)


def _lead(place: Place, command: Sequence[str]) -> int:
    store = place.store(is_master=True)
    kept = {name: value for name, value in os.environ.items() if name not in _NAMES}
    given = {VARIABLE: json.dumps(asdict(place))}
    # outside a start of ranks nothing is there to save: the warning must not end the command
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        process = subprocess.Popen(command, env={**kept, **given})
    except OSError as error:
        store.set("end", "127")
        raise ParameterError(f"'{command[0]}' cannot be started: {error.strerror}") from None
    with _forwarding(process):
        code = process.wait()
    code = 128 - code if code < 0 else code  # as a shell gives it
    if code and store.check(["stopped"]):
        code = INTERRUPTED_EXIT_CODE
    store.set("end", str(code))
    _say_goodbye(store, place)
    return code


def _say_goodbye(store: Store, place: Place) -> None:
    """Keep the store until the others have seen the end, a while at most."""
    deadline = time.monotonic() + SHUTDOWN_SECONDS
    others = [f"left/{rank}" for rank in range(1, place.size)]
    while others and time.monotonic() < deadline and not store.check(others):
        time.sleep(_POLL_S)


def _follow(place: Place) -> int:
    # before the first start nothing is there to save
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    store = place.store()
    number = 1
    while True:
        if store.check([f"start/{number}"]):
            with _rank(place, number, json.loads(store.get(f"start/{number}"))) as rank:
                while rank.poll() is None and not store.check([f"give_up/{number}"]):
                    time.sleep(_POLL_S)
            store.set(f"code/{number}/{place.rank}", str(rank.returncode))
            number += 1
        elif store.check(["end"]):
            found = int(store.get("end"))
            store.set(f"left/{place.rank}", "1")
            return found
        else:
            time.sleep(_POLL_S)


def _wait_for_all(store: Store, place: Place, number: int, own: subprocess.Popen[bytes]) -> dict[int, int]:
    """Exit codes of the ranks of a start; when one failed, the others have a while to end."""
    keys = {rank: f"code/{number}/{rank}" for rank in range(1, place.size)}
    codes: dict[int, int] = {}
    deadline = float("inf")
    while len(codes) < place.size and time.monotonic() < deadline:
        code = own.poll()
        if code is not None:
            codes[0] = code
        codes.update({r: int(store.get(key)) for r, key in keys.items() if r not in codes and store.check([key])})
        if codes and deadline == float("inf") and (0 in codes or any(codes.values())):
            # all end within one step of each other, or never
            deadline = time.monotonic() + SHUTDOWN_SECONDS
        time.sleep(_POLL_S)
    store.set(f"give_up/{number}", "1")
    if len(codes) < place.size:
        logger.warning("ranks %s did not end", ", ".join(str(r) for r in range(place.size) if r not in codes))
    if any(codes.values()):
        return codes
    return {rank: codes.get(rank, -signal.SIGKILL) for rank in range(place.size)}


@contextmanager
def _rank(place: Place, number: int, order: Mapping[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    """The rank of this place in one start; leaving the block ends it. Errors go to its log, of rank 0 also here."""
    log = log_path(Path(order["directory"]), place.rank).open("wb")
    process = subprocess.Popen(
        order["command"],
        env={**os.environ, **place.variables(number)},
        stdout=None if place.rank == 0 else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    copying = threading.Thread(target=_copy, args=(process, log, place.rank == 0), daemon=True)
    copying.start()
    with _forwarding(process):
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(SHUTDOWN_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            copying.join(1.0)


def _copy(process: subprocess.Popen[bytes], target: BinaryIO, is_shown: bool) -> None:
    with target as log:
        for line in process.stderr or ():
            log.write(line)
            log.flush()
            if is_shown:
                sys.stderr.buffer.write(line)
                sys.stderr.flush()


def _forwarding(process: subprocess.Popen[bytes]) -> AbstractContextManager[None]:
    """While the block lasts, signals to this process go on to another one."""

    def forward(number: int, _: FrameType | None) -> None:
        if process.poll() is None:
            process.send_signal(number)

    return handlers(_SIGNALS, forward)
