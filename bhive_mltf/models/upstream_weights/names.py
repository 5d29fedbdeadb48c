"""Names of the weights in B-Hive's model classes and in ours, per family.

Each function yields (their name, our name, axes of a kernel of size 1 that theirs has behind ours).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

Pair = tuple[str, str, int]

CANDIDATES: Final = ("cpf", "npf", "vtx")
NORM: Final = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_LSTM: Final = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


@dataclass(frozen=True)
class Sizes:
    """What of a network decides which weights it has.

    groups : of candidates. layers, class_layers : blocks. has_global : whether columns of the jet are read.
    first_shortcut : whether the first convolution of ParticleNet changes the width.
    """

    groups: tuple[str, ...] = CANDIDATES
    layers: int = 3
    class_layers: int = 1
    has_global: bool = False
    first_shortcut: bool = False


Names = Callable[[Sizes], Iterator[Pair]]


def _each(theirs: str, ours: str, parameters: Sequence[str]) -> Iterator[Pair]:
    yield from ((f"{theirs}.{name}", f"{ours}.{name}", 0) for name in parameters)


def _linear(theirs: str, ours: str, axes: int = 0) -> Iterator[Pair]:
    yield f"{theirs}.weight", f"{ours}.weight", axes
    yield f"{theirs}.bias", f"{ours}.bias", 0


def _scale(theirs: str, ours: str) -> Iterator[Pair]:
    yield f"{theirs}.weight", f"{ours}.weight", 0


def _norm(theirs: str, ours: str) -> Iterator[Pair]:
    yield from _each(theirs, ours, NORM)


def _attention(theirs: str, ours: str) -> Iterator[Pair]:
    for name in ("weight", "bias"):
        yield f"{theirs}.in_proj_{name}", f"{ours}.project_in.{name}", 0
        yield f"{theirs}.out_proj.{name}", f"{ours}.project_out.{name}", 0


LAST_CONVOLUTION: Final = {"cpf": 3, "npf": 2, "vtx": 3}
_DEEPJET_DENSE: Final = 9


def deepjet(sizes: Sizes) -> Iterator[Pair]:
    """DeepJet and DeepJetHLT."""
    for group in sizes.groups:
        last = LAST_CONVOLUTION[group]
        yield from _norm(f"InputProcess.{group}_bn", f"branches.{group}.norm_in")
        for i in range(last):
            yield from _linear(f"InputProcess.{group}_conv.{i}.lin", f"branches.{group}.layers.{i}.linear", 1)
            yield from _norm(f"InputProcess.{group}_conv.{i}.bn", f"branches.{group}.layers.{i}.norm")
        yield from _linear(f"InputProcess.{group}_conv.{last}.lin", f"branches.{group}.last", 1)
        yield from _each(f"{group}_lstm", f"branches.{group}.lstm", _LSTM)
        yield from _norm(f"{group}_bn", f"branches.{group}.norm_out")
    if sizes.has_global:
        yield from _norm("global_bn", "norm_global")
    for i in range(_DEEPJET_DENSE):
        yield from _linear(f"DenseClassifier.LinLayers.{i}.lin", f"dense.{i}.linear")
        yield from _norm(f"DenseClassifier.LinLayers.{i}.bn", f"dense.{i}.norm")
    yield from _linear("Linear", "head")


def _pair_embedding() -> Iterator[Pair]:
    for i in range(3):
        yield from _norm(f"pair_embed.embed.{3 * i}", f"pair_embedding.norms.{i}")
        yield from _linear(f"pair_embed.embed.{3 * i + 2}", f"pair_embedding.linears.{i}", 1)


def _convolutions(groups: Sequence[str], *, twice: bool) -> Iterator[Pair]:
    for group in groups:
        yield from _norm(f"InputProcess.{group}_bn0", f"embeddings.{group}.norm_in")
        for number, layer in ((1, "first"), (3, "second")):
            theirs, ours = f"InputProcess.{group}_conv{number}", f"embeddings.{group}.{layer}"
            yield from _linear(f"{theirs}.lin", f"{ours}.linear", 1)
            yield from _norm(f"{theirs}.bn1", f"{ours}.norm")
            if twice:
                yield from _norm(f"{theirs}.bn2", f"{ours}.norm_out")


def particle_transformer(sizes: Sizes) -> Iterator[Pair]:
    """ParticleTransformer, its trigger version and UParT_v0."""
    yield from _convolutions(sizes.groups, twice=True)
    yield from _pair_embedding()
    blocks = [(f"Encoder.layers.{i}", f"blocks.{i}") for i in range(sizes.layers)]
    class_blocks = [(f"CLS_EncoderLayer{i + 1}", f"class_blocks.{i}") for i in range(sizes.class_layers)]
    for theirs, ours in blocks:
        yield from _linear(f"{theirs}.norm0", f"{ours}.norm")
    for theirs, ours in class_blocks:
        yield from _linear(f"{theirs}.norm0a", f"{ours}.norm_query")
        yield from _linear(f"{theirs}.norm0b", f"{ours}.norm_memory")
    for theirs, ours in (*blocks, *class_blocks):
        yield from _attention(f"{theirs}.self_attn", f"{ours}.attention")
        yield from _linear(f"{theirs}.norm1", f"{ours}.norm_sum")
        yield from _linear(f"{theirs}.norm2", f"{ours}.feed_forward.norm")
        yield from _linear(f"{theirs}.linear1", f"{ours}.feed_forward.expand")
        yield from _linear(f"{theirs}.linear2", f"{ours}.feed_forward.contract")
    yield "cls_token", "class_token", 0
    yield from _linear("cls_norm", "norm")
    yield from _linear("Linear", "head")


def _gated(theirs: str, ours: str) -> Iterator[Pair]:
    yield from _attention(f"{theirs}.self_attn", f"{ours}.attention")
    yield from _scale(f"{theirs}.ffn_norm", f"{ours}.feed_forward.norm")
    yield from _linear(f"{theirs}.ffn.dense_1", f"{ours}.feed_forward.expand")
    yield from _linear(f"{theirs}.ffn.dense_2", f"{ours}.feed_forward.contract")
    yield from _scale(f"{theirs}.ffn.attn_norm", f"{ours}.feed_forward.norm_expanded")


def _gated_blocks(layers: int) -> Iterator[Pair]:
    for i in range(layers):
        yield from _scale(f"Encoder.layers.{i}.attn_norm", f"blocks.{i}.norm")
        yield from _gated(f"Encoder.layers.{i}", f"blocks.{i}")


def _token_embeddings(groups: Sequence[str]) -> Iterator[Pair]:
    for group in groups:
        for number, suffix in ((1, "_in"), (3, "")):
            theirs, ours = f"InputProcess.{group}_conv{number}", f"embeddings.{group}"
            yield from _scale(f"{theirs}.bn1", f"{ours}.norm{suffix}")
            yield from _linear(f"{theirs}.lin", f"{ours}.linear{suffix}")


def particle_transformer_2(sizes: Sizes) -> Iterator[Pair]:
    """ParticleTransformer2 and those with lost tracks."""
    yield from _token_embeddings(sizes.groups)
    yield from _pair_embedding()
    yield from _gated_blocks(sizes.layers)
    for i in range(sizes.class_layers):
        theirs, ours = f"CLS_EncoderLayer{i + 1}", f"class_blocks.{i}"
        yield from _scale(f"{theirs}.cls_norm", f"{ours}.norm_query")
        yield from _scale(f"{theirs}.attn_norm", f"{ours}.norm_memory")
        yield from _gated(theirs, ours)
    yield "cls_token", "class_token", 0
    yield from _scale("cls_norm", "norm")
    yield from _linear("Linear", "head")


def _pooled(sizes: Sizes) -> Iterator[Pair]:
    yield from _gated_blocks(sizes.layers)
    yield from _linear("Pooling.ConvLayer", "pooling.score", 1)
    yield from _norm("Pooling.bn", "pooling.norm")
    yield from _linear("DenseClassifier.LinLayer1.lin", "dense.linear")
    yield from _norm("DenseClassifier.LinLayer1.bn1", "dense.norm")
    yield from _norm("DenseClassifier.LinLayer1.bn2", "dense.norm_out")
    yield from _linear("Linear", "head")


def deepjet_transformer(sizes: Sizes) -> Iterator[Pair]:
    """DeepJetTransformer."""
    yield from _convolutions(sizes.groups, twice=False)
    yield from _pooled(sizes)


def deepjet_transformer_hlt(sizes: Sizes) -> Iterator[Pair]:
    """DeepJetTransformerHLT and UDeepJetTransformerHLT."""
    yield from _token_embeddings(sizes.groups)
    yield from _pooled(sizes)


def particle_net(sizes: Sizes) -> Iterator[Pair]:
    """ParticleNet with an embedding of the inputs."""
    for group in sizes.groups:
        yield from _norm(f"InputProcess.{group}_bn0", f"embeddings.{group}.norm_in")
        for i in range(3):
            theirs = f"InputProcess.{group}_conv{i + 1}"
            yield from _linear(f"{theirs}.lin", f"embeddings.{group}.linears.{i}", 1)
            yield from _norm(f"{theirs}.bn1", f"embeddings.{group}.norms.{i}")
    yield from _norm("pn.bn_fts", "norm_in")
    for i, n_layers in enumerate((3, 3)):
        theirs, ours = f"pn.edge_convs.{i}", f"convolutions.{i}"
        for j in range(n_layers):
            yield f"{theirs}.convs.{j}.weight", f"{ours}.linears.{j}.weight", 2
            yield from _norm(f"{theirs}.bns.{j}", f"{ours}.norms.{j}")
        if i or sizes.first_shortcut:
            yield f"{theirs}.sc.weight", f"{ours}.shortcut.weight", 1
            yield from _norm(f"{theirs}.sc_bn", f"{ours}.norm_shortcut")
    yield "pn.fusion_block.0.weight", "fusion.weight", 1
    yield from _norm("pn.fusion_block.1", "norm_fusion")
    for number, layer in enumerate(("dense.0", "dense.3")):
        yield from _linear(f"pn.fc.{number}.0", layer)
    yield from _linear("pn.fc.2", "head")
