"""A thread that samples a node into the journal, under MLflow's names.

MLflow's own thread asks the store for the run at each sample, ends for good at the first failure, and reads all GPUs
of a shared host.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

from bhive_mltf.tracking.connection import one_line
from bhive_mltf.tracking.journal import Journal
from bhive_mltf.tracking.store import RunRecord
from bhive_mltf.tracking.system.gpus import Gpus
from bhive_mltf.tracking.system.machine import Machine

logger = logging.getLogger(__name__)

INTERVAL = 10.0  # s


class Sampler:
    """Samples this node until it is stopped.

    MLflow's variables for interval, samples per point and name of the node are obeyed.

    Parameters
    ----------
    send : takes the values of a point and its step.
    journal : of the training; one that goes on continues at its next step.
    node : stands in the names (`system/<node>/...`); None for the first node, which has MLflow's own names.
    root : id of the process whose tree belongs to the job, default this one.
    """

    def __init__(
        self,
        send: Callable[[dict[str, float], int], None],
        journal: Journal,
        *,
        node: str | None = None,
        interval: float = INTERVAL,
        root: int | None = None,
    ) -> None:
        node = os.environ.get("MLFLOW_SYSTEM_METRICS_NODE_ID") or node
        self._send = send
        self._prefix = f"system/{node}/" if node else "system/"
        self._interval = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or interval)
        self._samples = int(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING") or 1)
        self._step = journal.next_step(self._prefix)
        self._root = os.getpid() if root is None else root
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="bhive-mltf-system-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop; the samples taken since the last point are sent."""
        self._stop.set()
        self._thread.join(2.0)

    def _loop(self) -> None:
        try:
            machine, gpus = Machine(self._root), Gpus()
            while not self._stop.is_set():
                self._point(machine, gpus)
                self._step += 1
        except Exception as error:  # noqa: BLE001 - tracking never ends a training
            logger.warning("system metrics stop here: %s; the training goes on", one_line(error))

    def _point(self, machine: Machine, gpus: Gpus) -> None:
        """Take the samples of one point and send their means."""
        values: dict[str, list[float]] = defaultdict(list)
        known = set(machine.missing)
        for _ in range(self._samples):
            for name, value in (machine.read() | gpus.read()).items():
                values[name].append(value)
            if self._stop.wait(self._interval):
                break
        for counter in set(machine.missing) - known:
            logger.warning("system metrics go without %s: %s", counter, machine.missing[counter])
        self._send({self._prefix + name: round(fmean(found), 3) for name, found in values.items()}, self._step)


def sample_node(
    directory: str | Path, node: str, *, interval: float = INTERVAL, root: int | None = None
) -> Callable[[], None]:
    """Sample a node other than the first into the run of a training; returns what stops it. Never raises.

    The points go to a journal file of this process, and are delivered by the process that owns the run.
    """
    try:
        if RunRecord.read(Path(directory)) is None:
            return lambda: None
        journal = Journal(Path(directory))

        def send(values: dict[str, float], step: int) -> None:
            journal.metrics(values, step, int(time.time() * 1000))

        sampler = Sampler(send, journal, node=node, interval=interval, root=root)
    except Exception as error:  # noqa: BLE001 - tracking never ends a training
        logger.warning("node %s has no system metrics (%s)", node, one_line(error))
        return lambda: None

    def stop() -> None:
        sampler.stop()
        journal.close()

    return stop
