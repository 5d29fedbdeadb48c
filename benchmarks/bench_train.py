"""Training of ParT and DeepJet: against weaver-core's ParT, and what the engine costs.

    python benchmarks/bench_train.py --data DIR [--rounds 5] [--batch-size 64]

DIR is a folder of JetClass files; DeepJet trains on jets made here. One pinned core. Outputs are compared first, on the
same real jets: evaluation mode, and, in float64, training mode without dropout for `trim=False`. All that is compared
then takes turns, step by step, on the same batches; weaver-core runs in an environment of its own (`make weaver`, or
$WEAVER_PYTHON). The last line is one JSON object, medians over the rounds:

part_over_weaver_fp32, part_over_weaver_bf16 : training jets/s of the paper's ParT, forward, backward and step, over
    weaver's with its default trimming, which drops particles in training (ours drops none); bf16: autocast on both.
part_over_weaver_untrimmed_fp32, part_over_weaver_untrimmed_bf16 : over weaver's with `trim=False`, the same function.
engine_overhead : time of a step of the real Trainer over that of the bare step of the same model on the same batch,
    minus 1; the larger one of ParT (fp32) and DeepJet. engine_overhead_part, engine_overhead_deepjet: each.
engine_ms : what the Trainer adds to the bare step of ParT with few jets, in ms: to be seen on a busy machine too.
part_jets_per_s, part_bf16_jets_per_s, deepjet_jets_per_s : of the Trainer. weaver_*: of weaver.
logits_distance : the largest relative distance of the logits that were compared.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import conditions, jetclass_files, on_cores
from part import MODEL, SEED, weaver_inputs
from peer import Peer
from turns import ENGINE, take_batches, train_in_turns

from bhive_mltf import config as configs
from bhive_mltf.data.ntuples.root_dataset import open_root
from bhive_mltf.interface import Batch
from bhive_mltf.models import registry
from bhive_mltf.models.import_weights import renamed_state
from bhive_mltf.testing.jets import write_btag
from bhive_mltf.training.plan import TrainingPlan

LARGEST_DISTANCE = 1e-5
CHECKS = ({"trim": True, "training": False}, {"trim": False, "training": False}, {"trim": False, "training": True})
DEEPJET_JETS = 20_000
N_BATCHES = 16
FEW_JETS = 2


def make_plan(place: Path, files: Sequence[str], config: configs.Config, model: str, **values: Any) -> TrainingPlan:
    return TrainingPlan(
        directory=place, dataset=place / "none", root_files=tuple(files), config=config, model_name=model, epochs=1,
        loss_weighting=True, n_threads=0, tracking=False, seed=SEED, **values,
    )  # fmt: skip


def check_outputs(weaver: Peer, plan: TrainingPlan, batch: Batch, place: Path) -> float:
    """The largest relative distance of our logits from weaver's, with its weights; SystemExit if it is too large."""
    distances = []
    for check in CHECKS:
        path = place / "outputs.npz"
        weaver.ask(do="outputs", batch=0, length=batch.groups["cpf"].mask.shape[1], path=str(path), **check)
        with np.load(path) as stored:
            arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
        model = registry.create(MODEL, plan.config, dropout=0.0)
        state = {name.removeprefix("state/"): value for name, value in arrays.items() if name.startswith("state/")}
        model.network.load_state_dict(renamed_state(state))
        given = batch
        if check["training"]:
            # batch norms of rows sum in float32 one by one: the more jets the further off
            model, given = model.double(), batch.map(lambda t: t.double() if t.is_floating_point() else t)
        with torch.no_grad():
            logits = model.train(check["training"])(given)
        expected = arrays["logits"]
        distances.append(float((logits - expected).norm() / expected.norm()))
        mode = "training" if check["training"] else "evaluation"
        print(f"logits, {mode} mode, weaver's trim={check['trim']}: relative distance {distances[-1]:.1e}")
        if not distances[-1] < LARGEST_DISTANCE:
            raise SystemExit(f"the outputs differ by {distances[-1]:.1e}: nothing is compared")
    return max(distances)


def over(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def report(title: str, seconds: Mapping[str, Sequence[float]], batch_size: int) -> None:
    print(f"\n{title:<28}{'ms':>9}{'jets/s':>9}   bare step over it, by round")
    for name, found in seconds.items():
        middle = statistics.median(found)
        ratios = [own / bare for own, bare in zip(found, seconds["bare"], strict=True)]
        shown = ", ".join(f"{ratio:.2f}" for ratio in ratios[:12])
        print(f"{name:<28}{1e3 * middle:>9.1f}{batch_size / middle:>9.1f}   {shown}", flush=True)


def part(files: Sequence[str], place: Path, options: argparse.Namespace, core: int) -> dict[str, float]:
    """ParT in float32 and under bf16 autocast."""
    config, figures = configs.load("jet_class"), {}
    with ExitStack() as stack:
        # held open, so that all plans share one conversion
        stack.enter_context(open_root(config, files, seed=SEED))
        plan = make_plan(place / "fp32", files, config, MODEL, batch_size=options.batch_size)
        batches = take_batches(plan, N_BATCHES)
        model = registry.create(MODEL, config, num_layers=1)
        inputs = [weaver_inputs(model, batch) for batch in batches]
        np.savez(place / "batches.npz", **{name: np.stack([own[name] for own in inputs]) for name in inputs[0]})
        arguments = [str(place / "batches.npz")]
        weaver = stack.enter_context(Peer("weaver_train.py", arguments, {"CORE": str(core), "OMP_NUM_THREADS": "1"}))
        print(", ".join(f"{name} {number}" for name, number in weaver.about.items()))
        figures["logits_distance"] = check_outputs(weaver, plan, batches[0], place)
        for name, bf16 in (("fp32", False), ("bf16", True)):
            if name in options.precisions:
                plan = make_plan(
                    place / name, files, config, MODEL, batch_size=options.batch_size, mixed_precision=bf16
                )
                seconds = part_rounds(plan, batches, weaver, options)
                report(f"ParT, {name}", seconds, options.batch_size)
                figures |= part_figures(name, seconds, options.batch_size)
    return figures


def part_rounds(
    plan: TrainingPlan, batches: Sequence[Batch], weaver: Peer, options: argparse.Namespace
) -> dict[str, list[float]]:
    def step(number: int, trim: bool) -> float:
        return float(weaver.ask(do="train", trim=trim, bf16=plan.mixed_precision, batch=number)["seconds"])

    others = {"weaver": functools.partial(step, trim=True), "weaver_untrimmed": functools.partial(step, trim=False)}
    rounds = options.bf16_rounds if plan.mixed_precision else options.rounds
    return train_in_turns(plan, batches, others, rounds=rounds, warm_up=1)


def part_figures(name: str, seconds: Mapping[str, Sequence[float]], batch_size: int) -> dict[str, float]:
    kind = "" if name == "fp32" else f"_{name}"
    return {
        f"part_over_weaver_{name}": over(seconds["weaver"], seconds["bare"]),
        f"part_over_weaver_untrimmed_{name}": over(seconds["weaver_untrimmed"], seconds["bare"]),
        f"part{kind}_jets_per_s": batch_size / statistics.median(seconds[ENGINE]),
        f"weaver{kind}_jets_per_s": batch_size / statistics.median(seconds["weaver"]),
        f"weaver_untrimmed{kind}_jets_per_s": batch_size / statistics.median(seconds["weaver_untrimmed"]),
    }


def added_ms(plan: TrainingPlan, rounds: int) -> float:
    """What the engine adds to the bare step, in ms."""
    seconds = train_in_turns(plan, take_batches(plan, N_BATCHES), {}, rounds=rounds)
    return 1e3 * statistics.median(a - b for a, b in zip(seconds[ENGINE], seconds["bare"], strict=True))


def overhead(plan: TrainingPlan, rounds: int) -> tuple[float, float]:
    """What the engine adds to the bare step, and the engine's jets/s."""
    seconds = train_in_turns(plan, take_batches(plan, N_BATCHES), {}, rounds=rounds)
    report(plan.model_name, seconds, plan.batch_size)
    return over(seconds[ENGINE], seconds["bare"]) - 1, plan.batch_size / statistics.median(seconds[ENGINE])


def engine_figures(files: Sequence[str], place: Path, options: argparse.Namespace) -> dict[str, float]:
    """The engine against the bare loop."""
    config = configs.load("jet_class")
    with open_root(config, files, seed=SEED):
        of_part, _ = overhead(
            make_plan(place / "part", files, config, MODEL, batch_size=options.batch_size), options.overhead_rounds
        )
        few = make_plan(place / "few", files, config, MODEL, batch_size=FEW_JETS)
        added = added_ms(few, 4 * options.overhead_rounds)
    config, jets = configs.load("DeepJet_AK4"), [str(write_btag(place / "TT_000.root", DEEPJET_JETS, SEED))]
    with open_root(config, jets, seed=SEED):
        plan = make_plan(place / "deepjet", jets, config, "DeepJet", batch_size=options.deepjet_batch_size)
        of_deepjet, speed = overhead(plan, 2 * options.overhead_rounds)
    return {
        "engine_overhead": max(of_part, of_deepjet),
        "engine_ms": added,
        "engine_overhead_part": of_part,
        "engine_overhead_deepjet": of_deepjet,
        "deepjet_jets_per_s": speed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of JetClass files")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each that count, against weaver")
    rounds = "of bf16; default: as many where the processor has its products, else 2, since a step takes long"
    parser.add_argument("--bf16-rounds", type=int, default=None, help=rounds)
    parser.add_argument("--overhead-rounds", type=int, default=15, help="steps of ParT that count, against bare steps")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--deepjet-batch-size", type=int, default=1024)
    parser.add_argument("--precisions", nargs="*", default=["fp32", "bf16"], help="against weaver")
    options = parser.parse_args()
    if options.bf16_rounds is None:
        options.bf16_rounds = options.rounds if torch.cpu._is_avx512_bf16_supported() else 2
    logging.getLogger("bhive_mltf").setLevel(logging.ERROR)
    files = jetclass_files(options.data)
    conditions(files)
    torch.set_num_threads(1)
    core = max(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder, on_cores([core]):
        figures = part(files, Path(folder), options, core) if options.precisions else {}
        if options.overhead_rounds:
            figures |= engine_figures(files, Path(folder), options)
    print(json.dumps({name: float(f"{value:.4g}") for name, value in figures.items()}))


if __name__ == "__main__":
    main()
