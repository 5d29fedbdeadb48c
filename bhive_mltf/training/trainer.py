"""The training loop: rounds of steps, validation, checkpoints, and the step boundaries where it may stop."""

from __future__ import annotations

import time
from typing import NoReturn

import torch
from torch import Tensor

from bhive_mltf.errors import DataError, NonFiniteLossError, TrainingError
from bhive_mltf.interface import Batch
from bhive_mltf.ranks.agreement import RankAgreement
from bhive_mltf.ranks.batchnorm import plain_batch_norms
from bhive_mltf.ranks.distributed import World
from bhive_mltf.ranks.signals import StopSignals, TrainingInterruptedError
from bhive_mltf.training import reproducibility
from bhive_mltf.training.build import Ingredients
from bhive_mltf.training.checkpointing.checkpoint import epoch_path
from bhive_mltf.training.checkpointing.manager import CheckpointManager
from bhive_mltf.training.choices import REGRESSION_LOSSES
from bhive_mltf.training.debugging import nonfinite
from bhive_mltf.training.metrics import N_SUMS, Figures
from bhive_mltf.training.monitoring.observers import EpochResult, Interval, Observer
from bhive_mltf.training.monitoring.profiling import FOLDER, StepProfiler
from bhive_mltf.training.monitoring.warnings import LoaderWaits, LossSpikes, few_jets
from bhive_mltf.training.optim.ddp_buckets import fix_reduction_layout
from bhive_mltf.training.optim.schedules import LearningRateSchedule
from bhive_mltf.training.plan import TrainingPlan
from bhive_mltf.training.rounds import rounds_of
from bhive_mltf.training.step import Stepper
from bhive_mltf.training.transfer import Transfer

MAX_INTERVAL = 100  # steps
INTERVALS_PER_ROUND = 20


class Trainer:
    """One rank's training from its latest checkpoint to its last round."""

    def __init__(
        self,
        plan: TrainingPlan,
        world: World,
        ingredients: Ingredients,
        stepper: Stepper,
        *,
        observer: Observer,
        signals: StopSignals,
    ) -> None:
        self._plan, self._world, self._parts = plan, world, ingredients
        self._stepper, self._observer, self._signals = stepper, observer, signals
        self._multi_task = plan.loss_function in REGRESSION_LOSSES
        self._rounds = rounds_of(plan)
        self._schedule = LearningRateSchedule(plan.lr_scheduler, self._rounds.planned, plan.lr_decay_factor)
        self._checkpoints = CheckpointManager(
            plan, world, ingredients, stepper, rounds=self._rounds, schedule=self._schedule
        )
        self._agreement = RankAgreement(world)
        self._position = self._checkpoints.restore()
        self._layout_fixed = False
        self._learning_rate = plan.learning_rate
        self._clock = self._interval_clock = time.monotonic()
        # losses of the steps since the last look at them, and norms of gradients, still on the device
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._jets = 0
        self._spikes, self._waits = LossSpikes(), LoaderWaits()
        self._profiler, self._transfer = StepProfiler(plan, world), Transfer(world.device)

    def run(self) -> None:
        """Train what is left; TrainingInterruptedError when asked to stop before the end."""
        try:
            self._train()
            self._checkpoints.writer.drain()
            self._hand_over_models()
        finally:
            self._hand_over_trace(self._profiler.close())
            self._checkpoints.writer.close()

    def _train(self) -> None:
        position, rounds = self._position, self._rounds
        self._observer.begin(self._plan, position.epoch, position.global_step, self._world.size)
        self._record_conditions()
        while rounds.is_left(position):
            self._train_round()
            self._stop_here_if_asked(save=True)
            validation, seconds = self._validate()
            self._finish_round(validation, seconds)
            rounds.advance(position)
            if rounds.is_left(position):
                self._stop_here_if_asked(save=False)

    def _record_conditions(self) -> None:
        if self._world.is_first:
            laid_out = bool(getattr(self._parts.model, "laid_out", False))
            changed = reproducibility.record(self._plan, self._world, self._position.global_step, laid_out=laid_out)
            if changed:
                self._observer.warn(
                    f"the training goes on with {', '.join(changed)}: it will differ from an uncut one in the last bits"
                )
            self._observer.file(self._plan.directory / reproducibility.FILE_NAME)
            few = few_jets(self._plan.batch_size, self._world.size) if self._world.device.type == "cuda" else None
            if few:
                self._observer.warn(few)

    def _hand_over_trace(self, is_there: bool) -> None:
        if is_there:
            for path in self._profiler.files:
                self._observer.file(path, FOLDER)

    def _hand_over_models(self) -> None:
        position, number = self._position, self._plan.last_number
        losses = position.histories.values["loss_val"]
        if not self._world.is_first or not losses:
            return
        model = plain_batch_norms(self._stepper.model).cpu().eval()
        self._observer.model("last", model, epoch_path(self._plan.directory, number), number, losses[-1])
        if position.best_epoch >= 0:
            path, state = self._checkpoints.best()
            model.load_state_dict(state["model_state_dict"])
            self._observer.model("best", model, path, position.best_epoch, position.best_loss_val)

    def _train_round(self) -> None:
        position, loader, rounds = self._position, self._parts.training, self._rounds
        done, total = rounds.span(position, loader.n_batches(position.epoch))
        self._observer.phase("training", rounds.number(position), done, total)
        self._stepper.model.train()
        self._clock = self._interval_clock = time.monotonic()
        log_steps = min(max(total // INTERVALS_PER_ROUND, 1), MAX_INTERVAL)
        while done < total:
            n_batches = loader.n_batches(position.epoch)  # counted anew at each call
            batches = self._transfer.over(loader.epoch(position.epoch, start=position.batch))
            for batch in self._waits.over(batches):
                self._step(batch, n_batches)
                self._hand_over_trace(self._profiler.step())
                done += 1
                if done % log_steps == 0 or done == total or self._stepper.guard.stopped:
                    self._look_at_losses()
                self._step_boundary()
                if done == total:
                    break
            if done < total:
                self._end_pass(n_batches)
        self._tick()

    def _end_pass(self, n_batches: int) -> None:
        """Go on with the next epoch in the middle of a round."""
        position = self._position
        if position.batch != n_batches or not self._plan.use_iterations:
            raise TrainingError(f"Epoch {position.epoch} has {n_batches} batches, but the loader gave {position.batch}")
        self._look_at_losses()
        position.next_epoch()

    def _step(self, batch: Batch, n_batches: int) -> None:
        position = self._position
        if not self._layout_fixed:
            fix_reduction_layout(self._stepper, batch, position.global_step)
            self._layout_fixed = True
        factor = self._schedule.factor(*self._rounds.progress(position, n_batches))
        self._learning_rate = self._plan.learning_rate * factor
        loss, sums = self._stepper.train(batch, position.global_step, self._learning_rate)
        position.sums += sums
        position.batch += 1
        position.global_step += 1
        self._losses.append(loss)
        self._norms.append(self._stepper.guard.norm)
        self._jets += batch.global_size
        self._observer.advance(batch.global_size)

    def _step_boundary(self) -> None:
        self._checkpoints.writer.check()
        stop, save = self._agreement.at_step(self._signals.received is not None, self._checkpoints.due_by_time())
        if stop or save or self._checkpoints.due_by_step(self._position.global_step):
            self._look_at_losses()
            self._tick()
            self._checkpoints.save_step(self._position)
        if stop:
            self._interrupted()

    def _look_at_losses(self) -> None:
        """The only place inside a round where numbers come to the host."""
        if not self._losses:
            return
        position, first = self._position, self._position.global_step - len(self._losses)
        waited = self._losses[0].new_full((len(self._losses),), self._waits.take())
        of_ranks = torch.stack([torch.stack(self._losses), torch.stack(self._norms).to(waited.dtype), waited])
        seen = self._world.gather(of_ranks.double())  # [W, 3, steps]
        losses, norms, longest = seen[:, 0].sum(0), seen[0, 1], float(seen[:, 2].max())
        self._refuse_non_finite(first, seen[:, 0], norms)
        seconds = time.monotonic() - self._interval_clock
        for warning in (
            self._spikes.see(first, losses.tolist()),
            self._waits.see(longest, seconds, self._plan.n_threads),
        ):
            if warning:
                self._observer.warn(warning)
        self._observer.interval(
            Interval(
                epoch=position.epoch,
                global_step=position.global_step,
                loss=float(losses.mean()),
                learning_rate=self._learning_rate,
                jets_per_s=self._jets / max(seconds, 1e-9),
                gradient_norm=float(norms.mean()),
                loader_wait=longest / max(seconds, 1e-9),
            )
        )
        self._losses.clear()
        self._norms.clear()
        self._jets = 0
        self._interval_clock = time.monotonic()

    def _refuse_non_finite(self, first: int, losses: Tensor, norms: Tensor) -> None:
        """NonFiniteLossError for the first step whose loss [W, steps] or norm [steps] is not finite, on all ranks."""
        wrong = ~torch.isfinite(losses.sum(0))
        if not self._stepper.scaler.is_enabled():
            wrong |= ~torch.isfinite(norms)
        if not wrong.any():
            return
        position, i = self._position, int(wrong.nonzero()[0])
        batch = position.batch - len(norms) + i
        bad = nonfinite.BadStep(first + i, position.epoch, batch, losses[:, i].tolist(), float(norms[i]))
        raise nonfinite.report(bad, self._world, self._parts, self._stepper)

    @torch.no_grad()
    def _validate(self) -> tuple[Figures, float]:
        started = time.monotonic()
        # the same jets whatever the epoch
        loader, epoch, number = self._parts.validation, self._position.epoch, self._rounds.number(self._position)
        self._observer.phase("validation", number, 0, loader.n_batches(epoch))
        self._stepper.model.eval()
        sums = torch.zeros(N_SUMS, dtype=torch.float64, device=self._world.device)
        for batch in self._transfer.over(loader.epoch(epoch)):
            sums += self._stepper.validate(batch)
            self._observer.advance(batch.global_size)
        total = self._world.sum(sums)
        if total[2] <= 0:
            raise DataError("No jet with a weight above 0 is left to validate: choose a smaller train_val_split")
        figures = Figures.of(total, self._multi_task)
        if not torch.isfinite(total).all():
            raise NonFiniteLossError(
                f"The validation loss is {figures.loss} in epoch {epoch} (after step {self._position.global_step}): "
                "try a smaller learning rate, or look at the inputs"
            )
        return figures, time.monotonic() - started

    def _finish_round(self, validation: Figures, seconds: float) -> None:
        position, number = self._position, self._rounds.number(self._position)
        train = Figures.of(self._world.sum(position.sums), self._multi_task)
        position.histories.append(train, validation, position.seconds, seconds)
        is_best = validation.loss < position.best_loss_val
        if is_best:
            position.best_loss_val, position.best_epoch = validation.loss, number
        self._checkpoints.save_round(position, is_best)
        self._observer.epoch(EpochResult(number, train, validation, position.seconds, seconds, is_best))

    def _stop_here_if_asked(self, save: bool) -> None:
        if not self._agreement.now(self._signals.received is not None):
            return
        if save:
            self._checkpoints.save_step(self._position)
        self._interrupted()

    def _interrupted(self) -> NoReturn:
        self._checkpoints.writer.drain()
        name = self._signals.received.name if self._signals.received else "a signal to another rank"
        raise TrainingInterruptedError(
            f"The training in {self._plan.directory} was stopped by {name} after step {self._position.global_step} "
            "and saved: the same command goes on from there",
            self._position.global_step,
            self._signals.received,
        )

    def _tick(self) -> None:
        now = time.monotonic()
        self._position.seconds += now - self._clock
        self._clock = now
