"""The attacks: from the space of a batch to changes. Each jet is attacked for itself; nothing is random.

B: jets; C: classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bhive_mltf.attacks.options import AttackOptions
from bhive_mltf.attacks.space import Changes, Space
from bhive_mltf.interface import Batch

Logits = Callable[[Batch], Tensor]
Method = Callable[[Space, Logits, AttackOptions], Changes]
_TINY = 1e-12


def pgd(space: Space, logits_of: Logits, options: AttackOptions) -> Changes:
    """Signed gradient ascent of the cross-entropy in steps of magnitude / iterations; FGSM for one iteration.

    A. Madry et al., arXiv:1706.06083, without their random start; I. Goodfellow et al., arXiv:1412.6572.
    """
    step = options.magnitude / options.iterations
    changes = space.nothing()
    for _ in range(options.iterations):
        (gradients,) = space.gradients(changes, lambda batch: [_loss(logits_of(batch), batch)])
        grown = zip(changes, space.scale, gradients, strict=True)
        changes = space.within([change + step * scale * gradient.sign() for change, scale, gradient in grown])
    return changes


def jetfool(space: Space, logits_of: Logits, options: AttackOptions) -> Changes:
    """The shortest way out of the predicted class, the boundaries taken as planes, until the prediction changes.

    S. Moosavi-Dezfooli et al., arXiv:1511.04599 (DeepFool), for all inputs of a jet together; lengths are counted in
    units of the factors.
    """
    way, changes = space.nothing(), space.nothing()
    first: Tensor | None = None
    for _ in range(options.iterations):
        seen: list[Tensor] = []

        def of(batch: Batch, seen: list[Tensor] = seen) -> Sequence[Tensor]:
            logits = logits_of(batch)
            seen.append(logits.detach())
            return list(logits.sum(0).unbind())

        gradients = space.gradients(changes, of)
        logits = seen[0]
        first = logits.argmax(1) if first is None else first
        still = logits.argmax(1) == first
        # a GPU goes on with jets that do not move any more: it would have to be waited for
        if still.device.type == "cpu" and not still.any():
            break
        onwards = _to_plane(space, logits, first, gradients)
        way = [one + more * _per_jet(still, more) for one, more in zip(way, onwards, strict=True)]
        changes = space.within([(1 + options.overshoot) * one for one in way])
    return changes


def optimizer(space: Space, logits_of: Logits, options: AttackOptions) -> Changes:
    """The largest cross-entropy minus sum((change / (factor * uncertainty))^2) / 2 of each jet.

    The features are nuisance parameters with a Gaussian constraint, pulled where the tagger errs most. There the pull
    equals gradient * uncertainty^2, in units of the factors: a fixed point, sought by a whole step and then by halves.
    """
    changes = space.nothing()
    for iteration in range(options.iterations):
        (gradients,) = space.gradients(changes, lambda batch: [_loss(logits_of(batch), batch)])
        rate = 1.0 if iteration == 0 else 0.5
        aims = [
            (options.uncertainty * scale).square() * gradient
            for scale, gradient in zip(space.scale, gradients, strict=True)
        ]
        changes = space.within([one + rate * (aim - one) for one, aim in zip(changes, aims, strict=True)])
    return changes


METHODS: dict[str, Method] = {"pgd": pgd, "jetfool": jetfool, "optimizer": optimizer}


def _loss(logits: Tensor, batch: Batch) -> Tensor:
    # jets of no class do not move, whatever is said of them
    return F.cross_entropy(logits, batch.target.clamp(min=0), reduction="sum")


def _to_plane(space: Space, logits: Tensor, label: Tensor, gradients: Sequence[Changes]) -> Changes:
    """Per group the way [B,N,F] to the nearest of the planes where another class is as likely as `label` [B].

    gradients : of each class, per group [B,N,F].
    """
    jets = torch.arange(len(label), device=label.device)
    normals = []  # per group [C,B,N,F]: from the label's logit to each other one, in units of the factors
    for per_class, movable, scale in zip(zip(*gradients, strict=True), space.movable, space.scale, strict=True):
        all_classes = torch.stack(per_class)
        normals.append(torch.where(movable, (all_classes - all_classes[label, jets]) * scale, 0.0))
    square = torch.stack([normal.flatten(2).square().sum(2) for normal in normals]).sum(0).T  # [B,C]
    gap = (logits - logits[jets, label][:, None]).abs()
    distance = torch.where(square > _TINY, gap / square.clamp(min=_TINY).sqrt(), torch.inf)
    nearest = distance.argmin(1)  # never the label itself, whose square is 0
    reachable = distance[jets, nearest].isfinite()
    step = torch.where(reachable, gap[jets, nearest] / square[jets, nearest].clamp(min=_TINY), 0.0)
    return [
        normal[nearest, jets] * scale * _per_jet(step, normal[0])
        for normal, scale in zip(normals, space.scale, strict=True)
    ]


def _per_jet(values: Tensor, like: Tensor) -> Tensor:
    """[B] as [B,1,1]."""
    return values.to(like.dtype).view(-1, *[1] * (like.dim() - 1))
