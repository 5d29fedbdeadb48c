"""weaver-core's ParT as one rank of its DDP, or alone; runs in weaver's environment.

    python weaver_ddp.py BATCHES.npz WHICH

Jets, batch by batch, are those of the file; WHICH names the array with the rank of each jet; those of rank $SHARE are
computed. With WORLD_SIZE the ranks are wrapped as in weaver's train.py, on GPUs ($DEVICE is cuda) with torch's
synchronised batch norms, which it does not have on CPUs.
"""

import ctypes
import json
import os
import sys
import time

import numpy as np
import torch
import torch.distributed as dist
from weaver.nn.model.ParticleTransformer import ParticleTransformer


def build(**options):
    chosen = {"trim": True, **options}
    return ParticleTransformer(
        input_dim=17,
        num_classes=10,
        pair_input_dim=4,
        use_pre_activation_pair=False,
        embed_dims=[128, 512, 128],
        pair_embed_dims=[64, 64, 64],
        num_heads=8,
        num_layers=8,
        num_cls_layers=2,
        cls_block_params={"dropout": 0, "attn_dropout": 0, "activation_dropout": 0},
        fc_params=[],
        activation="gelu",
        **chosen,
    )


def prepare():
    """The device of $DEVICE; on a CPU one thread on core $CORE."""
    if os.environ.get("DEVICE", "cpu") == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    os.sched_setaffinity(0, {int(os.environ["CORE"])})
    torch.set_num_threads(1)
    return torch.device("cpu")


def now(device):
    """Time in s, when all that was asked for is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def main():
    device = prepare()
    torch.manual_seed(1)
    with np.load(sys.argv[1]) as arrays:
        batches = {name: arrays[name] for name in arrays.files}
    mine = batches[sys.argv[2]] == int(os.environ["SHARE"])
    model = build().train().to(device)
    with torch.no_grad():
        # the trimmer does nothing in the first five
        for _ in range(6):
            model(*(torch.from_numpy(batches[name][0][:2]).to(device) for name in ("x", "v", "mask")))
    parameters = sum(p.numel() for p in model.parameters())
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if device.type == "cuda":
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        model = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss = torch.nn.CrossEntropyLoss()
    print(json.dumps({"parameters": parameters}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        # one step more at the beginning, which is not timed: it gets back the memory that was given away
        for number in range(request["start"] - 1, request["start"] + request["steps"]):
            if number == request["start"]:
                started, worked = now(device), time.process_time()
            jets = mine[number % len(mine)]
            arrays = (batches[name][number % len(mine)][jets] for name in ("x", "v", "mask", "target"))
            features, vectors, mask, target = (torch.from_numpy(values).to(device) for values in arrays)
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=request.get("bf16", False)):
                value = loss(model(features, v=vectors, mask=mask), target)
            value.backward()
            optimizer.step()
        answer = {"seconds": now(device) - started, "cpu_seconds": time.process_time() - worked}
        del features, vectors, mask, target
        ctypes.CDLL(None).malloc_trim(0)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
