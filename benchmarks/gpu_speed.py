"""Rows of gpu_check.py: how fast it is, beside what the card could do and beside weaver-core."""

from __future__ import annotations

import itertools
import os
import tempfile
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from gpu_row import NO_GPU, PART, Found, jets_of, placed, require, row, seconds_of, step
from part import weaver_inputs
from peer import Peer, weaver_python

from bhive_mltf import config as configs
from bhive_mltf.evaluation.predictions import predict
from bhive_mltf.models import registry
from bhive_mltf.training.optim.optimisers import create_optimizer
from bhive_mltf.training.precision import float32_products
from bhive_mltf.training.scaling.limits import Traced, ceilings

# kjets/s of the paper's ParT, forward, backward and update, by card and precision: estimates of +-40 %
PREDICTED = {
    "H200": {"float32": 60, "tf32": 80, "bf16": 105},
    "A6000": {"float32": 9, "tf32": 12, "bf16": 17},
}
PRECISIONS = {"float32": (False, None), "tf32": (True, None), "bf16": (False, torch.bfloat16)}


class Training:
    """The paper's ParT, or another model, and its optimiser on a device."""

    def __init__(self, device: torch.device, n_jets: int, name: str = PART, config: str = "jet_class") -> None:
        self.model = registry.create(name, configs.load(config)).to(device).train()
        self.optimizer = create_optimizer("AdamW", self.model.parameters(), 1e-3)
        self.host = jets_of(self.model, n_jets)
        self.batch = placed(self.host, device)

    def step(self, autocast: torch.dtype | None = None) -> None:
        step(self.model, self.batch, autocast)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


@row("copy about 4.3 TB/s, bf16 product about 790 TFLOP/s on an H200; 0.7 and 150 on an A6000")
def versions(device: torch.device) -> Found:
    size = 2**28 if device.type == "cuda" else 2**22
    side = 8192 if device.type == "cuda" else 512
    a = torch.empty(size, device=device)
    b = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    return {
        "copy_tb_per_s": 2 * 4 * size / seconds_of(a.clone, device, 5) / 1e12,
        "bf16_tflop_per_s": 2 * side**3 / seconds_of(lambda: b @ b, device, 5) / 1e12,
    }


@row(
    "ParT of the paper by batch and precision: kjets/s, GB at most (512 jets in bf16: 4), % of the card's byte and "
    "arithmetic limits",
    limit=90,
)
def speed(device: torch.device) -> Found:
    on_gpu = device.type == "cuda"
    card = torch.cuda.get_device_name(device) if on_gpu else ""
    found: Found = {"predicted": next((rates for name, rates in PREDICTED.items() if name in card), {})}
    for name, (tf32, autocast) in PRECISIONS.items() if on_gpu else [("float32", (False, None))]:
        with float32_products(tf32=tf32):
            limits = ceilings(device, autocast or torch.float32)
            for n_jets in (512, 1024, 2048) if on_gpu else (32,):
                training, traced = Training(device, n_jets), Traced()
                if on_gpu:
                    torch.cuda.reset_peak_memory_stats(device)
                jets_per_s = n_jets / seconds_of(lambda: training.step(autocast), device, 10 if on_gpu else 1)  # noqa: B023
                key = f"{name}_{n_jets}"
                found[f"{key}_kjets_per_s"] = jets_per_s / 1e3
                if on_gpu:
                    found[f"{key}_peak_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
                with traced.over(n_jets):
                    training.step(autocast)
                cost = traced.cost()
                found[f"{key}_byte_limit_%"] = 100 * jets_per_s * cost.bytes / limits.bytes
                found[f"{key}_flop_limit_%"] = 100 * jets_per_s * cost.flops / limits.flops
                found[f"{key}_mb_per_jet"] = cost.bytes / 1e6
    return found


@row("kjets/s of inference with ParT in float32, and of DeepJet in training and inference")
def inference(device: torch.device) -> Found:
    on_gpu, found = device.type == "cuda", {}
    n_jets, n_batches = (1024, 20) if on_gpu else (16, 2)
    for name, config in ((PART, "jet_class"), ("DeepJet", "DeepJet_AK4")):
        training = Training(device, n_jets, name, config)
        host = training.host.map(torch.Tensor.pin_memory) if on_gpu else training.host
        predict(training.model, [host], device, n_jets, input_order=False)
        batches = itertools.repeat(host, n_batches)
        done = predict(training.model, batches, device, n_batches * n_jets, input_order=False)
        found[f"{name}_inference_kjets_per_s"] = n_batches * n_jets / done.seconds / 1e3
        if name == "DeepJet":
            seconds = seconds_of(training.step, device, 10 if on_gpu else 1)
            found["DeepJet_training_kjets_per_s"] = n_jets / seconds / 1e3
    return found


@row(
    "training steps of weaver-core's ParT beside ours on the same jets, with its trimming and without: ours is faster",
    limit=90,
)
def weaver(device: torch.device) -> Found:
    try:
        weaver_python()
    except SystemExit as error:
        return {"not run": str(error)}
    on_gpu, found = device.type == "cuda", {}
    for n_jets in (512, 1024) if on_gpu else (16,):
        training = Training(device, n_jets)
        with tempfile.TemporaryDirectory() as folder:
            arrays = {name: values[None] for name, values in weaver_inputs(training.model, training.host).items()}
            np.savez(Path(folder) / "batches.npz", **arrays)
            variables = {"DEVICE": device.type, "CORE": str(max(os.sched_getaffinity(0))), "OMP_NUM_THREADS": "1"}
            with Peer("weaver_train.py", [str(Path(folder) / "batches.npz")], variables) as peer:
                assert peer.about["weaver-core"]
                for name, (tf32, autocast) in PRECISIONS.items():
                    if tf32 or not (on_gpu or autocast is None):
                        continue
                    steps = 10 if on_gpu else 1
                    with float32_products():
                        ours = seconds_of(partial(training.step, autocast), device, steps)
                    for trim in (True, False):
                        request = {"do": "train", "trim": trim, "bf16": autocast is not None, "batch": 0}
                        peer.ask(**request)
                        theirs = peer.ask(**request, steps=steps)["seconds"]
                        key = f"{name}_{n_jets}_{'trimmed' if trim else 'untrimmed'}"
                        found[f"{key}_weaver_kjets_per_s"] = n_jets / theirs / 1e3
                        found[f"{key}_ours_over_weaver"] = theirs / ours
    slower = {name: value for name, value in found.items() if name.endswith("ours_over_weaver") and value < 1}
    # few jets on a CPU that others use say nothing
    require(not (slower and on_gpu), f"weaver-core is faster: {slower}")
    return found


@row("compiled: nothing compiled anew after the first shapes", limit=120)
def compiled(device: torch.device) -> Found:
    from torch._dynamo.utils import counters

    from tests.helpers.model_factory import jets, small

    model = small(PART).to(device).train()
    model.compile_rows("default")
    # a CPU would compile C++ for minutes, which tests/training/test_compile.py does: here it only traces
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    seen = []
    with mock.patch("torch.compile", partial(torch.compile, backend=backend)):
        for number, counts in enumerate([[3, 9, 4], [7, 5, 12, 2], [6, 8], [11, 2, 3, 4, 5, 21]] * 5):
            step(model, placed(model.counted(jets(model, counts, seed=number)), device))
            seen.append(counters["stats"]["unique_graphs"])
    require(len(set(seen[4:])) == 1, f"graphs by step: {seen}")
    return {"backend": backend, "graphs": seen[-1]}


@row("ParT of the paper compiled, in bf16: kjets/s, GB at most; on an H200 150 kjets/s and more", limit=120)
def fused(device: torch.device) -> Found:
    if device.type != "cuda":
        return NO_GPU
    found: Found = {}
    for n_jets in (1024, 2048):
        training = Training(device, n_jets)
        training.model.compile_rows("default")
        training.step(torch.bfloat16)
        torch.cuda.reset_peak_memory_stats(device)
        seconds = seconds_of(partial(training.step, torch.bfloat16), device, 20)
        found[f"{n_jets}_kjets_per_s"] = n_jets / seconds / 1e3
        found[f"{n_jets}_peak_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return found
