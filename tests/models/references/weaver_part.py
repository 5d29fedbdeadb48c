"""Makes weaver_part.npz: a tiny ParticleTransformer of weaver-core 0.5.3, its inputs, logits and gradients.

Run it in weaver-core's environment, with this package on PYTHONPATH:
python tests/models/references/weaver_part.py [tests/models/references/weaver_part.npz]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

SIZES = {
    "input_dim": 5,
    "num_classes": 3,
    "embed_dims": [12, 16, 12],
    "pair_embed_dims": [6, 6],
    "num_heads": 2,
    "num_layers": 1,
    "num_cls_layers": 1,
}
NO_DROPOUT = {"dropout": 0.0, "attn_dropout": 0.0, "activation_dropout": 0.0}
COUNTS = (1, 9, 4, 2, 12, 7, 10, 15, 3, 20, 6, 11)


def make(seed: int = 0, **options) -> nn.Module:
    """weaver's network with weights that no initial value hides; version 1 without trimming and dropout."""
    from weaver.nn.model.ParticleTransformer import ParticleTransformer

    torch.manual_seed(seed)
    chosen = {**SIZES, "use_pre_activation_pair": False, "trim": False, "block_params": NO_DROPOUT, **options}
    module = ParticleTransformer(**chosen)
    for value in [*module.parameters(), *module.buffers()]:
        if value.is_floating_point():
            value.data += 0.05 * torch.randn_like(value)
    return module


def random_jets(counts=COUNTS, n_features=SIZES["input_dim"], n_classes=SIZES["num_classes"], seed=1):
    """features [B,F,N], four-vectors [B,4,N], mask [B,1,N], target [B]; float64, zero where padded."""
    generator = torch.Generator().manual_seed(seed)
    n_jets, length = len(counts), max(counts) + 1
    mask = torch.arange(length) < torch.tensor(counts)[:, None]
    momenta = 5 * torch.randn(n_jets, length, 3, generator=generator, dtype=torch.float64)
    energy = (momenta.square().sum(-1, keepdim=True) + 0.02).sqrt()
    vectors = torch.cat((momenta, energy), -1).transpose(1, 2) * mask[:, None]
    features = torch.randn(n_jets, n_features, length, generator=generator, dtype=torch.float64) * mask[:, None]
    return features, vectors, mask[:, None].double(), torch.arange(n_jets) % n_classes


def results(module: nn.Module, features, vectors, mask, target) -> dict[str, np.ndarray]:
    """Logits and gradients by weaver's names."""
    module.zero_grad()
    logits = module(features, vectors, mask)
    F.cross_entropy(logits, target).backward()
    grads = {f"grad/{name}": p.grad.numpy().copy() for name, p in module.named_parameters()}
    return {"logits": logits.detach().numpy(), **grads}


def main(path: Path) -> None:
    module, jets = make().double(), random_jets()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    arrays = {f"state/{name}": value.numpy() for name, value in state.items()}
    arrays |= dict(zip(("features", "vectors", "mask", "target"), (values.numpy() for values in jets), strict=True))
    for dtype in (torch.float64, torch.float32):
        for mode in ("evaluation", "training"):
            module.to(dtype).load_state_dict(state)
            found = results(module.train(mode == "training"), *(values.to(dtype) for values in jets[:3]), jets[3])
            arrays |= {f"{str(dtype).split('.')[1]}/{mode}/{name}": value for name, value in found.items()}
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".npz"))
