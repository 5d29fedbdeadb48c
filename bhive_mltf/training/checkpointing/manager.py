"""What of a training is saved, under which keys, and when."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import bhive_mltf
from bhive_mltf.config import as_recorded
from bhive_mltf.errors import CheckpointError, TrackingError
from bhive_mltf.ranks.distributed import World
from bhive_mltf.tracking.store import RunRecord
from bhive_mltf.training.build import Ingredients
from bhive_mltf.training.checkpointing import checkpoint, start_from
from bhive_mltf.training.checkpointing.async_writer import BackgroundWriter, on_host
from bhive_mltf.training.checkpointing.position import Position
from bhive_mltf.training.metrics import Histories
from bhive_mltf.training.optim.optimisers import load_state
from bhive_mltf.training.optim.schedules import LearningRateSchedule
from bhive_mltf.training.plan import RESULT_FIELDS, TrainingPlan
from bhive_mltf.training.rounds import Rounds
from bhive_mltf.training.step import RNG_SCHEME, Stepper

SAVE_INTERVAL = 600.0  # s, between step checkpoints when `checkpoint_steps` is 0
# Of what earlier versions did not record, the value with which they trained.
_YOUNGER_SETTINGS = {"start_from": ""}
_SETTINGS = {*RESULT_FIELDS} - {"model_name", "model_kwargs"}


class CheckpointManager:
    """Checkpoints of one training. All ranks call its methods; rank 0 writes, behind the steps that follow.

    writer : has what is not on disk yet, and raises a CheckpointError for what could not be written.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        world: World,
        ingredients: Ingredients,
        stepper: Stepper,
        *,
        rounds: Rounds,
        schedule: LearningRateSchedule,
    ) -> None:
        self._plan, self._world, self._stepper = plan, world, stepper
        self._rounds, self._schedule = rounds, schedule
        self._identity = {
            "config_digest": ingredients.config_digest,
            "dataset_digest": ingredients.dataset_digest,
            "val_dataset_digest": ingredients.val_dataset_digest,
            "model_name": plan.model_name,
            "model_kwargs": plan.model_kwargs,
            "classes": ingredients.classes,
            "inputs": ingredients.inputs,
            "settings": plan.model_dump(mode="json", include=_SETTINGS),
        }
        self._last_save = time.monotonic()
        self.writer = BackgroundWriter()

    def restore(self) -> Position:
        """Load the latest checkpoint into model, optimiser and scaler; the start if there is none."""
        found = checkpoint.find_latest(self._plan.directory)
        position = Position()
        if found is not None:
            path, state = found
            settings = {**_YOUNGER_SETTINGS, **(state.get("settings") or {})}
            checkpoint.check_identity(path, {**state, "settings": settings}, self._identity_of(state))
            self._stepper.model.load_state_dict(state["model_state_dict"])
            load_state(self._stepper.optimizer, state["optimizer_state_dict"])
            if state["scaler_state_dict"]:
                self._stepper.scaler.load_state_dict(state["scaler_state_dict"])
            position = Position.restore(state, self._world)
            if state["epoch_complete"]:
                self._rounds.advance(position)
        elif self._plan.start_from:
            start_from.load(self._stepper.model, self._plan.model_name, Path(self._plan.start_from))
        steps = self._world.gather(torch.tensor([position.global_step]))
        if (steps != steps[0]).any():
            raise CheckpointError(
                f"The ranks found different checkpoints in {self._plan.directory} (steps {steps.flatten().tolist()}): "
                "its file system does not show all ranks the same files, wait a moment and start again"
            )
        position.sums = position.sums.to(self._world.device)
        return position

    def _identity_of(self, state: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint has to record; an earlier version's digest of the same config is as good."""
        digest = str(state.get("config_digest"))
        recorded = as_recorded(self._plan.config, digest)
        return {**self._identity, **({"config_digest": digest} if recorded else {})}

    def due_by_step(self, global_step: int) -> bool:
        """Whether a step checkpoint is due, by the number of steps; alike on all ranks."""
        return self._plan.checkpoint_steps > 0 and global_step % self._plan.checkpoint_steps == 0

    def due_by_time(self) -> bool:
        """Whether one is due by the clock of rank 0; asked for once."""
        if self._plan.checkpoint_steps > 0 or not self._world.is_first:
            return False
        if time.monotonic() - self._last_save < SAVE_INTERVAL:
            return False
        self._last_save = time.monotonic()
        return True

    def save_step(self, position: Position) -> None:
        """Have a rolling step checkpoint written; CheckpointError when an earlier one could not be."""
        directory, keep = self._plan.directory, self._plan.keep_checkpoints
        path = checkpoint.step_path(directory, position.global_step)

        def write(state: checkpoint.State) -> None:
            checkpoint.write_checkpoint(path, state)
            checkpoint.prune_steps(directory, keep)

        self._put(self._state(position, complete=False), write)

    def save_round(self, position: Position, is_best: bool) -> None:
        """Have all files of a finished round written; `model_<number>.pt`, which says that it is done, last."""
        directory, number = self._plan.directory, self._rounds.number(position)

        def write(state: checkpoint.State) -> None:
            Histories(state["histories"]).write(directory)
            if is_best:
                checkpoint.write_checkpoint(directory / checkpoint.BEST_NAME, state)
            checkpoint.write_checkpoint(checkpoint.epoch_path(directory, number), state)
            if not self._plan.keep_all_epochs_models:
                checkpoint.prune_before(directory, number)

        self._put(self._state(position, complete=True), write)

    def _put(self, state: checkpoint.State, write: Callable[[checkpoint.State], None]) -> None:
        """Have rank 0 write a copy of the state."""
        if not self._world.is_first:
            return
        copy, ready = on_host(state)

        def job() -> None:
            ready()
            write(copy)

        self.writer.put(job)
        self._last_save = time.monotonic()

    def best(self) -> tuple[Path, dict[str, Any]]:
        """The best model's file and content."""
        self.writer.drain()
        path = self._plan.directory / checkpoint.BEST_NAME
        return path, checkpoint.read_checkpoint(path)

    def _state(self, position: Position, complete: bool) -> dict[str, Any]:
        stepper, number = self._stepper, self._rounds.number(position)
        return {
            **position.state(self._world, number, complete),
            "model_state_dict": dict(stepper.model.state_dict()),
            "optimizer_state_dict": stepper.optimizer.state_dict(),
            "scheduler_state_dict": {**vars(self._schedule), "last_epoch": number},
            "scaler_state_dict": stepper.scaler.state_dict(),
            **self._identity,
            "model_function": self._plan.model_function,
            "seed": self._plan.seed,
            "rng_scheme": RNG_SCHEME,
            "world_size": self._world.size,
            "threads": torch.get_num_threads(),
            "generation": self._plan.generation,
            "code_version": bhive_mltf.__version__,
            "torch_version": str(torch.__version__),
            "run_id": _run_id(self._plan.directory),
        }


def _run_id(directory: Path) -> str:
    try:
        record = RunRecord.read(directory)
    except TrackingError:
        return ""
    return record.run_id if record else ""
