"""Base class of all taggers.

Axes: B jets, N candidates, F columns, C classes, R regression outputs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bhive_mltf.errors import ModelError
from bhive_mltf.models.kinematics import cartesian
from bhive_mltf.models.layers import RowWise
from bhive_mltf.models.layout import Layout, Pairs, lay_out
from bhive_mltf.models.resolve import GLOBAL, GroupRequest, resolve_inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from bhive_mltf.config import Config
    from bhive_mltf.interface import Batch, GroupBatch, ModelInputs, Padding
    from bhive_mltf.models.classes import Classes


class Outputs(NamedTuple):
    """What a multi-task tagger gives: logits [B,C] and regression [B,R]."""

    logits: Tensor
    regression: Tensor


class Tagger(nn.Module):
    """A network that gives one logit per class from a batch of jets, and with `regression` some numbers too.

    A subclass declares the attributes below and `forward`, and calls `super().__init__(config)` first. Its other
    constructor parameters are keyword-only with defaults: they are the sizes that `--model-kwargs` may set.

    classes : output class -> truth labels, ordered.
    groups : what it reads.
    padding : `longest` of the global batch, or `configured` for models whose result depends on padded candidates.
    laid_out : whether candidates are laid out as rows of groups (`models.layout`), by which dropout draws its numbers.
    regression : names of its regression outputs, which `regression_targets` are given for; () for a plain tagger.
    inputs : the same, in the columns and labels of the config; made here.
    function_version : of what it computes from its weights, see `registry.Entry.function`.

    Raises
    ------
    ModelError : the config lacks a group, a column, four-vectors or a truth label that the model needs.
    """

    classes: Classes
    groups: tuple[GroupRequest, ...] = ()
    padding: Padding = "longest"
    laid_out: bool = False
    regression: tuple[str, ...] = ()
    function_version: int = 1
    inputs: ModelInputs

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.inputs = resolve_inputs(self.name, config, self.classes, self.groups, self.padding)

    @property
    def name(self) -> str:
        """Name of the model in messages."""
        return type(self).__name__

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights; inputs are converted to it."""
        return next(self.parameters()).dtype

    def forward(self, batch: Batch) -> Tensor | Outputs:
        """Logits [B,C] of the classes, in the order of `classes`; a multi-task tagger gives `Outputs`."""
        raise NotImplementedError

    def regression_targets(self, batch: Batch) -> Tensor:
        """What the regression outputs should be, [B,R], at least float32; the class of a jet is in `batch.target`."""
        raise NotImplementedError

    @property
    def n_outputs(self) -> int:
        """C + R: width of the last layer."""
        return len(self.classes) + len(self.regression)

    def outputs(self, values: Tensor) -> Tensor | Outputs:
        """Values [B,C+R] of the last layer as what `forward` returns."""
        n_classes = len(self.classes)
        return Outputs(values[:, :n_classes], values[:, n_classes:]) if self.regression else values

    def per_group(self, make: Callable[[int], nn.Module]) -> nn.ModuleDict:
        """A module for each group of candidates, made for its number of columns."""
        groups = [group for group in self.inputs.groups if group.name != GLOBAL]
        return nn.ModuleDict({group.name: make(len(group.columns)) for group in groups})

    def jet_columns(self, batch: Batch, columns: Sequence[str]) -> Tensor:
        """These columns of the group `global`, [B,len(columns)], at least float32."""
        group = self.group_of(batch, GLOBAL)
        # one by one: a list of positions would be sent to the device, which the host would wait for
        found = torch.stack([group.features[:, 0, group.columns.index(column)] for column in columns], dim=1)
        return found.to(torch.promote_types(found.dtype, torch.float32))

    def group_of(self, batch: Batch, name: str) -> GroupBatch:
        """A group of the batch; ModelError when the batch was not made for this model."""
        group = batch.groups.get(name)
        expected = self.inputs.group(name)
        if group is None or group.columns != expected.columns:
            there = "no such group" if group is None else ", ".join(group.columns)
            msg = (
                f"model {self.name}: the batch does not hold the group {name!r} with the columns "
                f"{', '.join(expected.columns)}, there is: {there}; give the model's `inputs` to the loader"
            )
            raise ModelError(msg)
        if self.padding == "configured" and group.features.shape[1] != expected.length:
            msg = (
                f"model {self.name} must see {expected.length} candidates per jet in the group {name!r}, padding "
                f"included, the batch has {group.features.shape[1]}; give the model's `inputs` to the loader"
            )
            raise ModelError(msg)
        return group

    def counted(self, batch: Batch) -> Batch:
        """The batch with the `counts` of all its groups of candidates."""
        groups = {name: group if name == GLOBAL else group.counted() for name, group in batch.groups.items()}
        return replace(batch, groups=groups)

    def lay_out(self, batch: Batch, names: Iterable[str], pairs: Pairs = "none") -> Layout:
        """The layout of the candidates of these groups together; the batch has their `counts`."""
        groups = [self.group_of(batch, name) for name in names]
        counts = [group.counts for group in groups if group.counts is not None]
        return lay_out(np.stack(counts), [group.mask.shape[1] for group in groups], batch.target.device, pairs)

    def real_tokens(self, batch: Batch, embeddings: nn.ModuleDict, layout: Layout) -> Tensor:
        """Tokens [M,E] of the real candidates of all groups of a layout, made by the embedding of each."""
        parts = zip(embeddings.items(), layout.real, strict=True)
        return torch.cat(
            [embed(self.features(batch, name).flatten(0, 1).index_select(0, real)) for (name, embed), real in parts]
        )

    def real_momenta(self, batch: Batch, names: Iterable[str], layout: Layout) -> Tensor:
        """Four-momenta [M,4] of the real candidates of all groups of a layout."""
        parts = zip(names, layout.real, strict=True)
        return torch.cat([self.momenta(batch, name).flatten(0, 1).index_select(0, real) for name, real in parts])

    def compile_rows(self, mode: str) -> None:
        """Compile with torch.compile, in place: what works on rows (`layers.row_wise`), else the whole model."""
        parts = [module for module in self.modules() if isinstance(module, RowWise)]
        for part in parts:
            part.compile_mode = mode
        if not parts:
            self.compile(mode=mode, dynamic=True)

    def features(self, batch: Batch, name: str) -> Tensor:
        """Features [B,N,F] of a group in the type of the weights."""
        return self.group_of(batch, name).features.to(self.dtype)

    def momenta(self, batch: Batch, name: str) -> Tensor:
        """Four-momenta (px, py, pz, E) [B,N,4] of a group, whatever the config has; at least float32."""
        vectors, kind = self.group_of(batch, name).four_vectors, self.inputs.group(name).kind
        if vectors is None or not kind:
            msg = f"model {self.name}: the batch has no four-vectors in the group {name!r}; ask for them in `groups`"
            raise ModelError(msg)
        return cartesian(vectors.to(torch.promote_types(self.dtype, torch.float32)), kind)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def at_least(model: str, minimum: int, **sizes: int) -> None:
    """ModelError unless each size is a whole number of at least `minimum`."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < minimum:
            msg = f"model {model}: {name} is {size!r}; give a whole number of at least {minimum}"
            raise ModelError(msg)


def fraction(model: str, **fractions: float) -> None:
    """ModelError unless each value is a number in [0, 1)."""
    for name, value in fractions.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
            msg = f"model {model}: {name} is {value!r}; give a number of at least 0 and below 1"
            raise ModelError(msg)


def divisible(model: str, embed_dim: int, num_heads: int) -> None:
    """ModelError unless the heads share the width evenly."""
    if embed_dim % num_heads:
        msg = f"model {model}: embed_dim {embed_dim} is no multiple of num_heads {num_heads}; change one of them"
        raise ModelError(msg)
