"""A step whose loss or gradient is not finite: what is known of it, as a file to replay it from.

`nonfinite/step_<9 digits>.json` in the directory of the training, and beside it, as `.pt`, the weights of that step
where the engine could keep them (see `optim.skip_nonfinite_update`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bhive_mltf.errors import NonFiniteLossError, ParameterError
from bhive_mltf.files import atomic
from bhive_mltf.interface import Batch
from bhive_mltf.ranks.distributed import World
from bhive_mltf.training.build import Ingredients
from bhive_mltf.training.step import Stepper, weighted_loss

FOLDER = "nonfinite"


@dataclass(frozen=True)
class BadStep:
    """A step whose loss or gradient is not finite.

    step : number of steps before it; epoch, batch : where its jets are.
    losses : each rank's part of the loss; norm : of the gradient, before clipping.
    """

    step: int
    epoch: int
    batch: int
    losses: Sequence[float]
    norm: float

    @property
    def what(self) -> str:
        """The number that is not finite."""
        loss = math.fsum(self.losses) if all(map(math.isfinite, self.losses)) else sum(self.losses)
        if not math.isfinite(loss):
            return f"The training loss is {loss}"
        return f"The norm of the gradient is {self.norm} (loss {loss:.4g})"


def report(bad: BadStep, world: World, parts: Ingredients, stepper: Stepper) -> NonFiniteLossError:
    """Find the jets of the step again, write them down, and the error to raise. To be called by all ranks."""
    batch = next(iter(parts.training.epoch(bad.epoch, start=bad.batch)))
    found = _of_all_ranks(world, _look(bad, stepper, batch))
    jets = [jet for _, of_rank in found for jet in of_rank]
    # batch norms carry what is wrong with one jet to all ranks
    guilty = sorted({jet["rank"] for jet in jets if not jet["finite_inputs"]}) or [
        rank for rank, (own, _) in enumerate(found) if own or not math.isfinite(bad.losses[rank])
    ]
    path = stepper.plan.directory / FOLDER / f"step_{bad.step:09d}.json"
    if world.is_first:
        weights = _write_weights(path, stepper) if stepper.guard.holds else None
        known = _known(bad, jets, parts)
        atomic.write_json(path, {**known, "ranks": world.size, "ranks_not_finite": guilty, "weights": weights})
    ranks = f", rank {', '.join(map(str, guilty))} of {world.size}" if guilty and world.size > 1 else ""
    return NonFiniteLossError(
        f"{bad.what} at step {bad.step} (epoch {bad.epoch}, batch {bad.batch}{ranks}): 'bhive-mltf replay {path}' "
        f"repeats it and names the first number that goes wrong, the file has the ids of the {len(jets)} jets; look at "
        "these inputs, or train another version with a smaller learning rate or clip_norm"
    )


def read(path: Path) -> dict[str, Any]:
    """The content of such a file; ParameterError if it is none."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {**content, "step": int(content["step"]), "epoch": int(content["epoch"]), "batch": int(content["batch"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ParameterError(
            f"{path} is no file of a step that was not finite ({error}): give one of {FOLDER}/ in the directory of a "
            "training"
        ) from error


def _look(bad: BadStep, stepper: Stepper, batch: Batch) -> tuple[bool, list[dict[str, Any]]]:
    """Whether this rank's own loss or gradient is not finite, and its jets; as in the step, if its weights are left."""
    rank = stepper.world.rank
    inputs = _finite_inputs(batch)
    losses: list[float | None] = [None] * len(batch)
    own = False
    if stepper.guard.holds:
        # all ranks do this: batch norms send messages
        attacked = stepper.attacked(batch)
        stepper.seed(bad.step)
        placed, _, of_jets = stepper.jet_losses(stepper.model, attacked)
        loss, _ = weighted_loss(of_jets, placed)
        (loss * stepper.world.size).backward()  # type: ignore[no-untyped-call]
        losses = of_jets.total.detach().tolist()
        gradients = [p.grad for p in stepper.model.parameters() if p.grad is not None]
        own = own or not all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
        stepper.model.zero_grad(set_to_none=True)
    ids, target = batch.jet_id.tolist(), batch.target.tolist()
    jets = [
        {"rank": rank, "file": file, "entry": entry, "target": of, "loss": _plain(loss), "finite_inputs": finite}
        for (file, entry), of, loss, finite in zip(ids, target, losses, inputs, strict=True)
    ]
    return own, jets


def _finite_inputs(batch: Batch) -> list[bool]:
    finite = torch.ones(len(batch), dtype=torch.bool)
    for group in batch.groups.values():
        for values in (group.features, group.four_vectors):
            if values is not None:
                finite &= torch.isfinite(values).flatten(1).all(1).cpu()
    return [bool(one) for one in finite.tolist()]


def _of_all_ranks(world: World, own: Any) -> list[Any]:  # noqa: ANN401 - plain values
    if world.size == 1:
        return [own]
    found = [None] * world.size
    dist.all_gather_object(found, own, group=world.host_group)
    return found


def _write_weights(path: Path, stepper: Stepper) -> str:
    weights = path.with_suffix(".pt")
    with atomic.open_replacing(weights) as file:
        torch.save({"model_state_dict": dict(stepper.model.state_dict())}, file)
    return weights.name


def _known(bad: BadStep, jets: list[dict[str, Any]], parts: Ingredients) -> dict[str, Any]:
    used = {str(jet["file"]) for jet in jets}
    return {
        "step": bad.step,
        "epoch": bad.epoch,
        "batch": bad.batch,
        "losses": [_plain(loss) for loss in bad.losses],
        "gradient_norm": _plain(bad.norm),
        "dataset_digest": parts.dataset_digest,
        "jet_id": parts.jet_files.get("jet_id", ""),
        "files": {index: file for index, file in parts.jet_files.get("files", {}).items() if index in used},
        "jets": jets,
    }


def _plain(value: float | None) -> float | str | None:
    """JSON has no NaN."""
    return value if value is None or math.isfinite(value) else str(value)
