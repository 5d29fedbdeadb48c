"""Equal weights in B-Hive's model classes and in ours: the largest difference of logits.

`python benchmarks/upstream_functions.py PATH` takes a checkout of B-Hive (the folder with `utils/models`), whose model
classes are imported; packages that they import and that are not installed are replaced by empty ones. In float64, on
random jets, in evaluation and in training mode without dropout; with all candidates there, and with padding.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bhive_mltf import config as configs
from bhive_mltf.config import Config
from bhive_mltf.interface import Batch, GroupBatch
from bhive_mltf.models import registry
from bhive_mltf.models.base import Tagger, count_parameters
from bhive_mltf.models.upstream import COLUMN_KEYS, upstream_config
from bhive_mltf.models.upstream_weights import convert

N_JETS = 16
# Ours -> module and class there, config.
CLASSES = {
    "DeepJet": ("deepjet", "DeepJet", "DeepJet_AK4"),
    "DeepJetHLT": ("deepjet", "DeepJetHLT", "hlt_run3"),
    "MoDJet": ("deepjet", "MoDJet", "mod_offline_run3"),
    "ParticleTransformer": ("particletransformer", "ParticleTransformer", "part_run3"),
    "ParticleTransformerHLT": ("particletransformer", "ParticleTransformerHLT", "hlt_run3"),
    "UParT_v0": ("UParT_v0", "UParT_v0", "part_run3_lt"),
    "ParticleTransformer2": ("particletransformer2", "ParticleTransformer2", "part_run3_lt"),
    "ParticleTransformer2_LT": ("particletransformer2_LT", "ParticleTransformer2", "part_run3_lt"),
    "ParticleTransformer2_LT_tau": ("particletransformer2_LT", "ParticleTransformer2_tau", "part_run3_lt"),
    "ParticleTransformer2_LT_tau_all": ("particletransformer2_LT", "ParticleTransformer2_tau_all", "part_run3_lt"),
    "ParticleTransformer2_LT_tau_Big": ("particletransformer2_LT", "ParticleTransformer2_tau", "part_run3_lt"),
    "ParticleTransformer2_LT_tau_Huge": ("particletransformer2_LT", "ParticleTransformer2_tau", "part_run3_lt"),
    "DeepJetTransformer": ("deepjettransformer", "DeepJetTransformer", "part_run3"),
    "DeepJetTransformerHLT": ("deepjettransformer", "DeepJetTransformerHLT", "hlt_run3"),
    "UDeepJetTransformerHLT": ("deepjettransformer", "UDeepJetTransformerHLT", "hlt_run3"),
    "ParticleNet_InPro": ("particlenet_InPro", "ParticleNetTagger", "part_run3"),
    "ParticleNet_InProHLT": ("particlenet_InPro", "ParticleNetTaggerHLT", "hlt_run3"),
    "UParticleNet_InProHLT": ("particlenet_InPro", "UParticleNetTaggerHLT", "hlt_run3"),
}
# What B-Hive gives a class under these names.
SIZES: Mapping[str, Mapping[str, int]] = {
    "ParticleTransformer2_LT_tau_Big": {"num_enc": 6, "embed_dim": 192},
    "ParticleTransformer2_LT_tau_Huge": {"num_enc": 12, "embed_dim": 192},
}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    name: {"padding_keys": "upstream"} for name in ("ParticleTransformer", "ParticleTransformerHLT", "UParT_v0")
}


class Placeholder:
    """A class of a module that is not installed."""

    def __init__(self, *arguments, **options):
        pass


class Nothing(types.ModuleType):
    """A module in whose place there is nothing."""

    def __init__(self, name):
        super().__init__(name)
        self.__path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Placeholder


def upstream_class(path: Path, module: str, name: str) -> type[nn.Module]:
    """A model class of the checkout."""
    wanted = f"utils.models.{module}"
    loaded = None
    sys.path.insert(0, str(path))
    try:
        while loaded is None:
            try:
                loaded = importlib.import_module(wanted)
            except ModuleNotFoundError as error:
                # only what the checkout itself imports: installed packages try for others, and do without
                if error.name is None or wanted.startswith(error.name):
                    raise
                sys.modules[error.name] = Nothing(error.name)
    finally:
        sys.path.remove(str(path))
    found: type[nn.Module] = getattr(loaded, name)
    return found


def random_jets(model: Tagger, *, padded: bool) -> Batch:
    """Random jets, all candidates there or 1 to all of them."""
    generator = torch.Generator().manual_seed(3)
    groups = {}
    for group in model.inputs.groups:
        shape = (N_JETS, group.length)
        features = torch.randn(*shape, len(group.columns), generator=generator, dtype=torch.float64)
        vectors = _vectors(group.kind, shape, generator)
        for place, column in enumerate(group.columns):
            if column in group.four_vectors:
                features[..., place] = vectors[..., group.four_vectors.index(column)]
        counts = torch.full((N_JETS,), group.length)
        if padded and group.name != "global":
            counts = torch.randint(1, group.length + 1, (N_JETS,), generator=generator)
        mask = torch.arange(group.length) < counts[:, None]
        features, vectors = features * mask[..., None], vectors * mask[..., None]
        groups[group.name] = GroupBatch(features, mask, group.columns, vectors if group.kind else None)
    zeros = torch.zeros(N_JETS, dtype=torch.int64)
    return Batch(groups, zeros, zeros.double(), torch.zeros(N_JETS, 2), zeros, torch.zeros(N_JETS, 2), N_JETS)


def _vectors(kind: str, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    draw = [torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    pt, eta, phi = 1 + 30 * draw[0], 4 * draw[1] - 2, 6.2 * draw[2] - 3.1
    energy = (pt.square() * eta.cosh().square() + 0.02).sqrt()
    if kind == "ptetaphie":
        return torch.stack((pt, eta, phi, energy), -1)
    return torch.stack((pt * phi.cos(), pt * phi.sin(), pt * eta.sinh(), energy), -1)


def theirs_of(batch: Batch) -> tuple[Tensor, ...]:
    """The five tensors that B-Hive's `forward` takes: four-vectors are the last columns of a group."""
    found = []
    for name in COLUMN_KEYS:
        group = batch.groups.get(name)
        if group is None:
            found.append(
                torch.zeros(N_JETS, 0, dtype=torch.float64).reshape((N_JETS, 0) if name == "global" else (N_JETS, 0, 0))
            )
            continue
        parts = [group.features] + ([group.four_vectors] if group.four_vectors is not None else [])
        values = torch.cat(parts, -1)
        found.append(values.flatten(1) if name == "global" else values)
    return tuple(found)


def logits(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Classes and regression outputs side by side."""
    return torch.cat(list(output), dim=1) if isinstance(output, tuple) else output


def theirs_for(path: Path, name: str, config: Config) -> nn.Module:
    """B-Hive's model with random statistics and without dropout."""
    torch.manual_seed(1)
    model = upstream_class(path, *CLASSES[name][:2])(upstream_config(config), **SIZES.get(name, {})).double()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(part.running_var, 0.5, 2.0)
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.weight, 0.5, 2.0)
        elif isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(part, nn.MultiheadAttention):
            part.dropout = 0.0
    return model


def differences(name: str, theirs: nn.Module, ours: Tagger) -> Iterator[str]:
    """Largest ones: full in evaluation and in training, padded in both."""
    kept = copy.deepcopy(theirs.state_dict())
    state = convert.to_ours(name, kept)
    # B-Hive's 16 % and 84 % quantiles stand in each other's place
    order = [*range(7), 8, 7, 9] if name == "UParT_v0" else slice(None)
    for padded in (False, True):
        batch = random_jets(ours, padded=padded)
        for training in (False, True):
            ours.load_state_dict(state)
            theirs.load_state_dict(kept)
            found = logits(ours.train(training)(batch)), logits(theirs.train(training)(theirs_of(batch)))
            yield f"{(found[0] - found[1][:, order]).abs().max().item():.1e}"


def row(path: Path, name: str) -> Iterator[str]:
    """Cells of a row of the table."""
    config = configs.load(CLASSES[name][2])
    theirs = theirs_for(path, name, config)
    ours = registry.create(name, config, dropout=0.0).double()
    yield from (name, f"{count_parameters(theirs):,}", f"{count_parameters(ours):,}")
    yield from differences(name, theirs, ours)
    if name in OPTIONS:
        yield from (f"{name}, {OPTIONS[name]}", "", "")
        yield from differences(name, theirs, registry.create(name, config, dropout=0.0, **OPTIONS[name]).double())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="checkout of B-Hive")
    parser.add_argument("models", nargs="*", default=list(CLASSES), help="all by default")
    options = parser.parse_args()
    heads = ("model", "parameters theirs", "ours", "full, eval", "full, train", "padded, eval", "padded, train")
    print(f"| {' | '.join(heads)} |\n{'| --- ' * len(heads)}|")
    for name in options.models:
        cells = list(row(options.path, name))
        for start in range(0, len(cells), len(heads)):
            print(f"| {' | '.join(cells[start : start + len(heads)])} |", flush=True)


if __name__ == "__main__":
    main()
