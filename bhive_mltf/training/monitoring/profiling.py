"""A trace of some steps by torch's profiler: `profile/` in the directory of the training, rank 0 only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
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
        self._wanted = plan.profile_steps if world.is_first else 0
        self._on_cuda = world.device.type == "cuda"
        self._profile: profiler.profile | None = None
        self._steps = 0

    def step(self) -> bool:
        """A step is done; True when with it the trace is on disk."""
        if not self._wanted:
            return False
        self._steps += 1
        if self._profile is None and self._steps == WARM_UP:
            self._begin()
        elif self._profile is not None and self._steps == WARM_UP + self._wanted:
            self._end()
            return True
        return False

    def close(self) -> bool:
        """End early; True when a trace of fewer steps is on disk."""
        if self._profile is None:
            return False
        self._end()
        return True

    @property
    def files(self) -> list[Path]:
        """The trace (for chrome://tracing or Perfetto), and a table of its operations."""
        return [self._folder / "trace.json.gz", self._folder / "operations.txt"]

    def _begin(self) -> None:
        activities = [profiler.ProfilerActivity.CPU]
        if self._on_cuda:
            activities.append(profiler.ProfilerActivity.CUDA)
        self._profile = profiler.profile(activities=activities, record_shapes=True)
        self._profile.start()

    def _end(self) -> None:
        assert self._profile is not None
        found, self._profile, self._wanted = self._profile, None, 0
        if self._on_cuda:
            torch.cuda.synchronize()
        found.stop()
        trace, table = self.files
        with atomic.replace_file(trace) as path:
            # torch looks at the ending of the name
            written = path.with_name(f"{path.name}.json.gz")
            found.export_chrome_trace(str(written))
            written.replace(path)
        averages: Any = found.key_averages()
        order = "self_cuda_time_total" if self._on_cuda else "self_cpu_time_total"
        atomic.write_text(table, averages.table(sort_by=order, row_limit=_ROWS) + "\n")
