"""A step that was not finite, repeated in one process: the same weights, the same jets, and a look at every number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bhive_mltf import compat
from bhive_mltf.errors import CheckpointError, DatasetMismatchError
from bhive_mltf.interface import Batch
from bhive_mltf.ranks.distributed import World, pick_device
from bhive_mltf.training import build as making
from bhive_mltf.training.build import Builder
from bhive_mltf.training.checkpointing import checkpoint
from bhive_mltf.training.debugging import nonfinite
from bhive_mltf.training.debugging.tracing import describe, traced
from bhive_mltf.training.engine import make_stepper
from bhive_mltf.training.plan import FILE_NAME, TrainingPlan
from bhive_mltf.training.step import Stepper

SHOWN = 10


def replay(path: Path, build: Builder = making.build) -> list[str]:
    """Repeat the step of a file of `nonfinite` on one rank and say what was found, a line each.

    The jets of all ranks go through the model at once, as their batch norms saw them; with several ranks dropout
    is another one. Nothing is written.

    Raises
    ------
    ParameterError : the file is none of a step, or has lost its training.
    DatasetMismatchError : the training set is another one now.
    """
    step = nonfinite.read(path)
    plan = TrainingPlan.read(path.parent.parent / FILE_NAME).model_copy(
        update={"directory": path.absolute().parent.parent, "n_threads": 0, "use_torch_compile": False}
    )
    world = World(device=pick_device(0))
    parts = build(plan, world)
    if parts.dataset_digest != step["dataset_digest"]:
        raise DatasetMismatchError(
            f"{path} is of the training set {step['dataset_digest'][:12]}, but {plan.dataset} is now "
            f"{parts.dataset_digest[:12]}: put the set of the training back"
        )
    stepper = make_stepper(plan, world, parts)
    lines = [_load(path, step, stepper)]
    batch = next(iter(parts.training.epoch(step["epoch"], start=step["batch"])))
    lines += _inputs(batch, step)
    lines += _pass(stepper, batch, step["step"])
    return lines


def _load(path: Path, step: dict[str, Any], stepper: Stepper) -> str:
    title = f"step {step['step']} (epoch {step['epoch']}, batch {step['batch']}), "
    if step["weights"]:
        state = torch.load(path.parent / step["weights"], map_location="cpu", weights_only=True)
        title += "with the weights of that step"
    else:
        found = checkpoint.find_latest(stepper.plan.directory)
        if found is None:
            raise CheckpointError(
                f"{path} has no weights, and {stepper.plan.directory} no checkpoint: nothing to replay"
            )
        state = found[1]
        title += f"with the weights after step {state['global_step']} ({found[0].name})"
    stepper.model.load_state_dict(state["model_state_dict"])
    broken = [name for name, value in stepper.model.named_parameters() if not value.isfinite().all()]
    return f"{title}, {_list(broken) if broken else 'all finite'}"


def _inputs(batch: Batch, step: dict[str, Any]) -> Iterator[str]:
    yield f"{len(batch)} jets"
    for name, group in batch.groups.items():
        per_column = group.features.isfinite().flatten(0, -2).all(0).tolist()
        wrong = [column for column, finite in zip(group.columns, per_column, strict=True) if not finite]
        found = f"not finite in {_list(wrong)}" if wrong else "finite"
        if group.four_vectors is not None and not group.four_vectors.isfinite().all():
            found += ", four-vectors not finite"
        largest = group.features.abs().flatten(0, -2).amax(0)
        top = "" if wrong else f", largest {largest.max():.3g} in {group.columns[int(largest.argmax())]}"
        yield f"inputs {name}: {found}{top}"
    files = step["files"]
    jets = [jet for jet in step["jets"] if not jet["finite_inputs"] or isinstance(jet["loss"], str)]
    places = [f"entry {jet['entry']} of {files.get(str(jet['file']), {}).get('path', jet['file'])}" for jet in jets]
    if places:
        yield f"jets with such an input or loss: {_list(places)}"


def _pass(stepper: Stepper, batch: Batch, global_step: int) -> list[str]:
    lines: list[str] = []
    stepper.model.train()
    batch = stepper.attacked(batch)
    stepper.seed(global_step)
    with traced(stepper.model, lines.append):
        loss, _ = stepper.backward(batch)
    lines.append(f"loss {loss.item():.6g}")
    gradients: dict[str, Tensor] = {n: p.grad for n, p in stepper.model.named_parameters() if p.grad is not None}
    wrong = [f"{name} ({describe(value)})" for name, value in gradients.items() if not value.isfinite().all()]
    total = compat.total_norm(gradients.values()).item()
    lines.append(f"gradient: norm {total:.6g}" + (f", not finite in {_list(wrong)}" if wrong else ", all finite"))
    return lines


def _list(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
