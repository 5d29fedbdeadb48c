"""What it takes to get the same bits again: torch's deterministic mode, and a record of what the bits depend on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

import bhive_mltf
from bhive_mltf.files import atomic
from bhive_mltf.files.records import read_object
from bhive_mltf.ranks.distributed import World
from bhive_mltf.training.plan import TrainingPlan
from bhive_mltf.training.precision import Precision
from bhive_mltf.training.step import RNG_SCHEME

FILE_NAME = "reproducibility.json"
# How networks lay out jets, and so which jet gets which of dropout's numbers; and what it was when nothing was noted.
# Networks without a layout (DeepJet) draw the same numbers as ever: their records have no word on it.
LAYOUT = "rows of groups"
_BEFORE = {"layout": "kernels for CPUs or padded jets, whose dropout drew other numbers"}
# cuBLAS reads it at its first use in a process
_CUBLAS = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def deterministic(asked: bool) -> Iterator[None]:
    """Torch's deterministic algorithms while it lasts, if asked for; an operation that has none is an error.

    Convolutions are not tuned by trial, and cuBLAS gets a workspace of its own per stream.
    """
    if not asked:
        yield
        return
    cudnn: Any = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    os.environ.setdefault(*_CUBLAS)
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]


def conditions(plan: TrainingPlan, world: World, *, laid_out: bool) -> dict[str, Any]:
    """What decides the bits of a training, besides its plan and its jets: plain JSON values."""
    on_cuda = world.device.type == "cuda"
    cudnn: Any = torch.backends.cudnn
    return {
        "seed": plan.seed,
        "rng_scheme": RNG_SCHEME,
        **({"layout": LAYOUT} if laid_out else {}),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": bool(cudnn.deterministic),
        "cudnn_benchmark": bool(cudnn.benchmark),
        "cublas_workspace": os.environ.get(_CUBLAS[0], "") if on_cuda else "",
        "ranks": world.size,
        "threads": torch.get_num_threads(),
        "device": world.device.type,
        "gpu": torch.cuda.get_device_name(world.device) if on_cuda else "",
        "cpu_kernels": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": bool(torch.backends.mkldnn.is_available()),  # type: ignore[no-untyped-call]
        "precision": Precision.of(plan, world.device).name,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_tf32": bool(cudnn.allow_tf32) if on_cuda else False,
        "compiled": plan.use_torch_compile,
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda or "",
        "cudnn": (cudnn.version() or 0) if on_cuda else 0,
        "nccl": _nccl_version() if on_cuda and world.size > 1 else "",
        "bhive_mltf": bhive_mltf.__version__,
    }


def _nccl_version() -> str:
    nccl: Any = torch.cuda.nccl
    return ".".join(map(str, nccl.version()))


def limits(known: Mapping[str, Any]) -> list[str]:
    """What has to be alike for the same bits, a sentence each."""
    found = [
        f"{known['ranks']} rank(s) of {known['threads']} compute thread(s): sums are made in another order otherwise",
        f"torch {known['torch']} and bhive_mltf {known['bhive_mltf']}",
        f"a CPU on which torch takes its {known['cpu_kernels']} kernels",
    ]
    if known["compiled"]:
        found.append("the same compiler and its cache: torch.compile picks kernels by measuring")
    if known["device"] == "cuda":
        found.append(f"the GPU {known['gpu']} with CUDA {known['cuda']} and cuDNN {known['cudnn']}")
        if known["ranks"] > 1:
            found.append("the same links between the GPUs: NCCL picks the order of its sums by them")
        if not known["deterministic"]:
            found.append("some GPU kernels add in no fixed order; --deterministic True takes others")
    return found


def record(plan: TrainingPlan, world: World, global_step: int, *, laid_out: bool = False) -> list[str]:
    """Note in the directory of the training what this process runs with; what differs from the one before it.

    laid_out : of the model, see `Tagger`.
    `reproducibility.json`: `processes`, one entry per start, with the steps that were done before it, and `limits`.
    """
    path = plan.directory / FILE_NAME
    known = conditions(plan, world, laid_out=laid_out)
    before: list[dict[str, Any]] = read_object(path).get("processes", []) if global_step else []
    last = {**_BEFORE, **before[-1]} if before else known
    changed = [
        f"{name} {known[name]} instead of {last[name]}" for name in known if known[name] != last.get(name, known[name])
    ]
    processes = [*before, {"from_step": global_step, "time": time.time(), **known}]
    atomic.write_json(path, {"limits": limits(known), "processes": processes})
    return changed
