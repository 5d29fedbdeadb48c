"""Compares the converted network with weaver-core's; runs in weaver-core's environment. Its last line is JSON.

    python compare_with_weaver.py [JETS.npz]

JETS.npz holds features [B,17,N], vectors [B,4,N], mask [B,1,N] and target [B]; without it jets are random.

Numbers are relative distances: of the logits, of the whole gradient, of the worst single tensor's gradient.
Offsets before a batch norm are left out in training: their gradient is zero but for rounding.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
from weaver_part import NO_DROPOUT, make, random_jets

from bhive_mltf.errors import ModelError
from bhive_mltf.models.import_weights import from_weaver, weaver_key

PUBLISHED = {
    "input_dim": 17,
    "num_classes": 10,
    "embed_dims": [128, 512, 128],
    "pair_embed_dims": [64, 64, 64],
    "num_heads": 8,
    "num_layers": 8,
    "num_cls_layers": 2,
}
OTHERS = (
    {"version": 2},
    {"remove_self_pair": True},
    {"compile_model": True},
    {"activation": "relu"},
    {"fc_params": [(16, 0.1)]},
    {"block_params": {**NO_DROPOUT, "attn_dropout": 0.2}},
)


def in_training_zero(key):
    return key.startswith("pair_embed.") and key.endswith("bias") and int(key.split(".")[2]) % 3 != 2


def compare(theirs, features, vectors, mask, target):
    """Distances of logits, gradient and worst tensor."""
    ours = from_weaver(theirs)
    theirs.zero_grad()
    expected, got = theirs(features, vectors, mask), ours(features, vectors, mask)
    for logits in (expected, got):
        F.cross_entropy(logits, target).backward()
    grads = dict(ours.network.named_parameters())
    pairs = {
        key: (grads[weaver_key(key)].grad.flatten(), p.grad.flatten())
        for key, p in theirs.named_parameters()
        if not (theirs.training and in_training_zero(key))
    }
    ours_all, theirs_all = (torch.cat(parts) for parts in zip(*pairs.values(), strict=True))
    return {
        "logits": distance(got.detach(), expected.detach()),
        "gradient": distance(ours_all, theirs_all),
        "worst": max(distance(*pair) for pair in pairs.values()),
    }


def distance(got, expected):
    return float((got - expected).norm() / expected.norm())


def refusal(options):
    try:
        from_weaver(make(**options))
    except ModelError as error:
        return str(error)
    return "taken"


def main():
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        with np.load(sys.argv[1]) as stored:
            features, vectors, mask, target = (
                torch.from_numpy(stored[name]) for name in ("features", "vectors", "mask", "target")
            )
    else:
        features, vectors, mask, target = random_jets((1, 40, 7, 23, 2, 31), 17, 10)
    distances = {}
    for dtype in (torch.float64, torch.float32):
        for mode in ("evaluation", "training"):
            module = make(**PUBLISHED).to(dtype).train(mode == "training")
            found = compare(module, *(x.to(dtype) for x in (features, vectors, mask)), target)
            distances |= {f"{str(dtype).split('.')[1]}/{mode}/{name}": value for name, value in found.items()}
    sys.stdout.write(json.dumps({"distances": distances, "refused": [refusal(options) for options in OTHERS]}) + "\n")


if __name__ == "__main__":
    main()
