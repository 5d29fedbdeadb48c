"""MLflow's system metrics, sent through our queue.

MLflow's own thread asks the store for the run at each sample, and ends for good at the first failure.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from bhive_mltf.tracking.connection import quiet
from bhive_mltf.tracking.failures import one_line

logger = logging.getLogger(__name__)


class SystemMetrics:
    """Samples processor, memory, disk, network and GPUs of this machine.

    MLflow's environment variables for interval, samples per point and node id are obeyed.
    """

    def __init__(
        self,
        run_id: str,
        uri: str,
        *,
        send: Callable[[dict[str, float], int], None],
        next_step: Callable[[str], int],
        node_id: str | None,
        interval: float,
    ) -> None:
        """Prepare the monitors; raises ImportError without psutil.

        next_step : the first free step of metrics with a prefix; a training that goes on continues there.
        """
        with quiet():
            self._monitor = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
                run_id, sampling_interval=interval, node_id=node_id, tracking_uri=uri
            )
        self._send = send
        self._prefix = prefix = f"system/{self._monitor.node_id}/" if self._monitor.node_id else "system/"
        self._step = next_step(prefix)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="bhive-mltf-system-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop; the samples taken since the last point are sent."""
        self._stop.set()
        self._thread.join(2.0)

    def _loop(self) -> None:
        try:
            with quiet():
                while not self._stop.is_set():
                    self._sample(self._step)
                    self._step += 1
        except Exception as error:  # noqa: BLE001 - tracking never ends a training
            logger.warning("system metrics stop here: %s; the training goes on", one_line(error))

    def _sample(self, step: int) -> None:
        for _ in range(self._monitor.samples_before_logging):
            self._monitor.collect_metrics()  # type: ignore[no-untyped-call]
            if self._stop.wait(self._monitor.sampling_interval):
                break
        metrics = self._monitor.aggregate_metrics()  # type: ignore[no-untyped-call]
        for monitor in self._monitor.monitors:
            monitor.clear_metrics()  # type: ignore[no-untyped-call]
        self._send({self._prefix + key: value for key, value in metrics.items()}, step)
