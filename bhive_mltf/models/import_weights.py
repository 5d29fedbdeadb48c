"""Others' networks as ours, with their weights.

Axes: B jets, N particles, F features, C classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bhive_mltf.errors import ModelError
from bhive_mltf.interface import GroupBatch
from bhive_mltf.models.kinematics import TINY
from bhive_mltf.models.part.network import PartNetwork

_PARTS = (
    (r"^embed\.input_bn\.", "embedding.norm."),
    (r"^embed\.embed\.", "embedding.layers."),
    (r"^(blocks|cls_blocks)\.(\d+)\.pre_attn_norm\.", r"\1.\2.norm_before_attention."),
    (r"^(blocks|cls_blocks)\.(\d+)\.attn\.in_proj\.", r"\1.\2.attention.project_in."),
    (r"^(blocks|cls_blocks)\.(\d+)\.attn\.out_proj\.", r"\1.\2.attention.project_out."),
    (r"^(blocks|cls_blocks)\.(\d+)\.post_attn_norm\.", r"\1.\2.norm_after_attention."),
    (r"^(blocks|cls_blocks)\.(\d+)\.c_attn$", r"\1.\2.head_scale"),
    (r"^(blocks|cls_blocks)\.(\d+)\.pre_fc_norm\.", r"\1.\2.norm_before_expansion."),
    (r"^(blocks|cls_blocks)\.(\d+)\.fc1\.", r"\1.\2.expand."),
    (r"^(blocks|cls_blocks)\.(\d+)\.post_fc_norm\.", r"\1.\2.norm_expanded."),
    (r"^(blocks|cls_blocks)\.(\d+)\.fc2\.", r"\1.\2.contract."),
    (r"^(blocks|cls_blocks)\.(\d+)\.w_resid$", r"\1.\2.residual_scale"),
    (r"^cls_blocks\.", "class_blocks."),
    (r"^cls_token$", "class_token"),
    (r"^fc\.0\.", "head."),
)
_KINDS = {
    *("ParticleTransformer", "Embed", "PairEmbed", "Block", "Attention", "SequenceTrimmer", "Sequential", "ModuleList"),
    *("LayerNorm", "BatchNorm1d", "Linear", "Conv1d", "GELU", "Dropout", "Identity"),
}
_PAIR = re.compile(r"^pair_embed\.embed\.(\d+)\.(.+)$")


class PartFromWeaver(nn.Module):
    """Our network behind the call of weaver-core's `ParticleTransformer`, which puts particles last."""

    def __init__(self, network: PartNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor, four_vectors: Tensor, mask: Tensor) -> Tensor:
        """Logits [B,C].

        features : [B,F,N]. four_vectors : [B,4,N], (px, py, pz, E). mask : [B,1,N], 1 or True for real particles.
        """
        group = GroupBatch(features.transpose(1, 2), mask[:, 0].bool(), (), four_vectors.transpose(1, 2)).counted()
        logits: Tensor = self.network(group.features, group.four_vectors, group.counts)
        return logits


def weaver_key(key: str) -> str:
    """Our name of an entry of the state dict of weaver-core's `ParticleTransformer`."""
    pair = _PAIR.match(key)
    if pair:
        # batch norm, then (linear, batch norm, activation) for each width
        place, entry = int(pair[1]), pair[2]
        kind, number = ("linears", place // 3) if place % 3 == 1 else ("norms", (place + 1) // 3)
        return f"pair_embedding.{kind}.{number}.{entry}"
    for pattern, ours in _PARTS:
        key = re.sub(pattern, ours, key)
    return key


def renamed_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of weaver-core's `ParticleTransformer` as one of `PartNetwork`."""
    return {weaver_key(key): _as_linear(key, value) for key, value in state.items()}


def from_weaver(module: nn.Module) -> PartFromWeaver:
    """The network of weaver-core's `ParticleTransformer` as ours: the same function, weights, mode and type.

    It drops no particle: it equals weaver's with `trim=False`. Dropout has the same rate and other random numbers.

    module : `weaver.nn.model.ParticleTransformer.ParticleTransformer`, version 1, for classification.

    Raises
    ------
    ModelError : the module is another network, or has an option that ours does not have.
    """
    _refuse_other_networks(module)
    state = renamed_state(module.state_dict())
    network = _network_of(module, state)
    expected = network.state_dict()
    strange = sorted(set(state) ^ set(expected)) or [k for k in state if state[k].shape != expected[k].shape]
    if strange:
        msg = f"from_weaver: this ParticleTransformer is not the published network: {', '.join(strange[:4])} differ"
        raise ModelError(msg)
    network.to(state["class_token"])
    network.load_state_dict(state)
    return PartFromWeaver(network).train(module.training)


def _refuse_other_networks(module: nn.Module) -> None:
    found = {type(part).__name__ for part in module.modules()}
    if type(module).__name__ != "ParticleTransformer" or not {"Embed", "PairEmbed", "Block"} <= found:
        raise ModelError(
            f"from_weaver takes weaver-core's ParticleTransformer with pairs, not a {type(module).__name__}"
        )
    reasons = [f"a part of the kind {kind}" for kind in sorted(found - _KINDS)]
    reasons += [f"{name} = {value}" for name, value, published in _options(module) if value != published]
    if reasons:
        raise ModelError(
            f"from_weaver: this ParticleTransformer has {' and '.join(reasons)}, but only weaver's version 1 as "
            "published, for training and classification, is the same function as ours"
        )


def _options(module: Any) -> list[tuple[str, object, object]]:  # noqa: ANN401
    """Options that no weight shows: name, value, value in the published network."""
    pairs, block = module.pair_embed, module.blocks[0]
    kinematics = pairs.pairwise_lv_fts
    rates = {"attn_dropout": block.attn.dropout, "activation_dropout": block.act_dropout.p}
    class_rates = {part.dropout.p for part in module.cls_blocks or ()}
    return [
        ("for_inference", module.for_inference, False),
        ("for_segmentation", module.for_segmentation, False),
        ("include_global_token", module.include_global_token, False),
        ("blocks without pair bias", module.block_ids_with_attn_mask.count(False), 0),
        ("remove_self_pair", pairs.remove_self_pair, False),
        # with False padding enters the batch norms of pairs; compile_model=True sets it so
        ("pair_embed_sparse_eval", tuple(pairs.sparse_eval), (True, True)),
        ("pair features", (kinematics.func.__name__, kinematics.keywords["eps"]), ("pairwise_lv_fts_pp", TINY)),
        *((f"{name} unlike dropout", value, block.dropout.p) for name, value in rates.items()),
        ("dropout in class blocks", class_rates, {0}),
    ]


def _as_linear(key: str, value: Tensor) -> Tensor:
    # a convolution of kernel 1
    return value.squeeze(-1) if key.startswith("pair_embed.") and value.dim() == 3 else value


def _network_of(module: Any, state: dict[str, Tensor]) -> PartNetwork:  # noqa: ANN401
    """An untrained network of the sizes of `module`, whose state is `state` under our names."""
    pair_layers = [part for part in module.pair_embed.embed if isinstance(part, nn.Conv1d)]
    if not pair_layers or "head.bias" not in state or not module.cls_blocks:
        raise ModelError(
            "from_weaver: this ParticleTransformer has no pair embedding, class blocks or single last layer"
        )
    return PartNetwork(
        len(state["embedding.norm.weight"]),
        len(state["head.bias"]),
        embed_dims=[part.out_features for part in module.embed.embed if isinstance(part, nn.Linear)],
        pair_embed_dims=[layer.out_channels for layer in pair_layers[:-1]],
        num_layers=len(module.blocks),
        num_cls_layers=len(module.cls_blocks),
        num_heads=pair_layers[-1].out_channels,
        dropout=module.blocks[0].dropout.p,
        final_pair_activation=isinstance(module.pair_embed.embed[-1], nn.GELU),
    )
