"""One step: forward, backward, update. No number leaves the device here.

B: jets of this rank; C: classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bhive_mltf import compat
from bhive_mltf.attacks.attack import Attack
from bhive_mltf.data.loader import order
from bhive_mltf.errors import ParameterError
from bhive_mltf.interface import Batch
from bhive_mltf.ranks.distributed import World
from bhive_mltf.training.losses import JetLosses, jet_losses
from bhive_mltf.training.metrics import N_SUMS, jet_sums
from bhive_mltf.training.optim.optimisers import needs_closure
from bhive_mltf.training.optim.skip_nonfinite_update import Guard
from bhive_mltf.training.plan import TrainingPlan
from bhive_mltf.training.precision import Precision, half_inputs

RNG_SCHEME = "philox/step/rank/1"
CLIP_NORM = 1.0
# MB of gradients in a message: those of our networks, 9 MB, would else be two, the large one behind the backward pass.
_BUCKET_MB = 2.0


def weighted_loss(losses: JetLosses, batch: Batch) -> tuple[Tensor, Tensor]:
    """A rank's part of the loss of the global batch, and the weights [B] of its jets; one in no class has none."""
    weight = batch.weight * (batch.target >= 0)
    return (losses.total * weight).sum() / batch.global_size, weight


class Stepper:
    """Model, loss, optimiser and gradient scaler of one rank.

    The loss of a global batch is sum(weight_i * loss_i) / global_size over all its jets, whatever the ranks: each
    rank sums over its own, and the factor `world.size` undoes DDP's mean over ranks. Class weights
    do not enter the denominator, as with upstream. Unless `clip_norm` says otherwise, gradients are clipped to norm 1
    under autocast and only then, as there. An `attack` changes the jets that train, never those that validate.
    """

    def __init__(
        self, plan: TrainingPlan, world: World, model: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        self.plan, self.world = plan, world
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.network: nn.Module = model
        self.precision = Precision.of(plan, world.device)
        self.scaler = self.precision.scaler(world.device)
        if self.scaler.is_enabled() and needs_closure(optimizer):
            raise ParameterError(
                f"optimizer is {plan.optimizer}, which cannot work with the scaled gradients of float16: "
                "set mixed_precision to False, or training_precision to 'bf16' or 'float32'"
            )
        self.attack: Attack | None = None
        # a scaler skips steps of its own, and does not stop
        self.guard = Guard(optimizer, world.device, acts=not self.scaler.is_enabled())
        default_norm = 0.0 if self.precision.autocast is None else CLIP_NORM
        self._clip_norm = default_norm if plan.clip_norm < 0 else plan.clip_norm

    def wrap(self) -> None:
        """Share gradients with the other ranks, which there must be, from now on."""
        # not static_graph: with it four ranks, cut and continued, end with other bits; unused weights are frozen
        self.network = DistributedDataParallel(
            self.model,
            device_ids=[self.world.device] if self.world.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            bucket_cap_mb=_BUCKET_MB,
            # synchronised batch norms are equal on all ranks without messages
            **compat.no_buffer_messages(),
        )

    def seed(self, global_step: int) -> None:
        """Seed torch for one step of this rank, so that a resumed training needs no generator state."""
        key = order.random_key(self.plan.seed, "step", global_step, self.world.rank)
        if self.world.device.type == "cpu":
            # `torch.manual_seed` also notes the call, with its stack, for GPUs that nobody uses
            torch.default_generator.manual_seed(key)
        else:
            torch.manual_seed(key)

    def backward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Gradients of a global batch; (this rank's part of its loss, `jet_sums`)."""
        loss, sums = self._forward(self.network, batch)
        self.scaler.scale(loss * self.world.size).backward()  # type: ignore[no-untyped-call]
        return loss.detach(), sums

    def train(self, batch: Batch, global_step: int, learning_rate: float) -> tuple[Tensor, Tensor]:
        """One step of the training; returns as `backward`."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        batch = self.attacked(batch)
        self.seed(global_step)
        if needs_closure(self.optimizer):
            return self._train_by_closure(batch, global_step)
        result = self.backward(batch)
        if self.scaler.is_enabled():
            # gradients that are not finite are its own affair
            self.guard.norm = self._clip()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.guard.step(self._clip())
        self.optimizer.zero_grad(set_to_none=True)
        return result

    def attacked(self, batch: Batch) -> Batch:
        """The batch as the attack, if there is one, changes it."""
        if self.attack is None:
            return batch
        with self.precision.autocasting(self.world.device):
            return self.attack(self._prepare(batch))

    def _clip(self) -> Tensor:
        """Clip the gradient if asked to; its norm before, that of the scaled one if a scaler is not asked to clip."""
        if self._clip_norm > 0:
            self.scaler.unscale_(self.optimizer)
            return nn.utils.clip_grad_norm_(self.model.parameters(), self._clip_norm)
        return compat.total_norm(p.grad for p in self.model.parameters() if p.grad is not None)

    def _train_by_closure(self, batch: Batch, global_step: int) -> tuple[Tensor, Tensor]:
        """A step of an optimiser that asks for the loss several times; returns what was there before it."""
        results: list[tuple[Tensor, Tensor]] = []

        def closure() -> float:
            self.optimizer.zero_grad(set_to_none=True)
            self.seed(global_step)  # the same function each time, dropout included
            results.append(self.backward(batch))
            norm = self._clip()
            if len(results) == 1:
                self.guard.norm = norm
            # of the global batch: all ranks must decide alike
            return float(self.world.sum(results[-1][0]))

        self.optimizer.step(closure)
        self.optimizer.zero_grad(set_to_none=True)
        return results[0]

    def validate(self, batch: Batch) -> Tensor:
        """`jet_sums` of a batch, which may be empty; without messages to other ranks."""
        if len(batch) == 0:
            return torch.zeros(N_SUMS, dtype=torch.float64, device=self.world.device)
        return self._forward(self.model, batch)[1]

    def jet_losses(self, network: nn.Module, batch: Batch) -> tuple[Batch, Tensor, JetLosses]:
        """The batch on the device, logits [B,C] of `network`, and the losses of its jets."""
        batch = self._prepare(batch)
        with self.precision.autocasting(self.world.device):
            output = network(batch)
        return batch, *jet_losses(self.loss, self.model, output, batch)

    def _forward(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        batch, logits, losses = self.jet_losses(network, batch)
        loss, weight = weighted_loss(losses, batch)
        return loss, jet_sums(losses, logits, batch.target, weight)

    def _prepare(self, batch: Batch) -> Batch:
        def place(values: Tensor) -> Tensor:
            dtype = self.precision.weights if values.is_floating_point() else values.dtype
            return values.to(self.world.device, dtype, non_blocking=True)

        if self.precision.half_inputs:
            batch = half_inputs(batch)
        return batch.map(place)
