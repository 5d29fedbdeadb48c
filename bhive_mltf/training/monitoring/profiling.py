"""A trace of some steps by torch's profiler: `profile/` in the directory of the training, rank 0 only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import profiler

from bhive_mltf.files import atomic
from bhive_mltf.ranks.distributed import World
from bhive_mltf.training.plan import TrainingPlan

FOLDER = "profile"
WARM_UP = 5  # steps before the trace
_ROWS = 40


class StepProfiler:
    """Traces `plan.profile_steps` steps of a process, after a warm-up; does nothing for 0, or on another rank."""

    def __init__(self, plan: TrainingPlan, world: World) -> None:
        self._folder = plan.directory / FOLDER
        self._on_cuda = world.device.type == "cuda"
        self._is_written = False
        self._profile: profiler.profile | None = None
        if plan.profile_steps and world.is_first:
            activities = [profiler.ProfilerActivity.CPU, *([profiler.ProfilerActivity.CUDA] if self._on_cuda else [])]
            self._profile = profiler.profile(
                activities=activities,
                schedule=profiler.schedule(wait=WARM_UP - 1, warmup=1, active=plan.profile_steps, repeat=1),
                on_trace_ready=self._write,
                record_shapes=True,
            )
            self._profile.start()

    def step(self) -> bool:
        """A step is done; True when with it the trace is on disk."""
        if self._profile is None:
            return False
        self._profile.step()
        return self._is_written and self.close()

    def close(self) -> bool:
        """End, early too; True when now a trace, perhaps of fewer steps, is on disk."""
        if self._profile is None:
            return False
        found, self._profile = self._profile, None
        found.stop()
        return self._is_written

    @property
    def files(self) -> list[Path]:
        """The trace (for chrome://tracing or Perfetto), and a table of its operations."""
        return [self._folder / "trace.json.gz", self._folder / "operations.txt"]

    def _write(self, found: profiler.profile) -> None:
        trace, table = self.files
        with atomic.replace_file(trace) as path:
            # torch looks at the ending of the name
            written = path.with_name(f"{path.name}.json.gz")
            found.export_chrome_trace(str(written))
            written.replace(path)
        averages: Any = found.key_averages()
        order = "self_cuda_time_total" if self._on_cuda else "self_cpu_time_total"
        atomic.write_text(table, averages.table(sort_by=order, row_limit=_ROWS) + "\n")
        self._is_written = True
