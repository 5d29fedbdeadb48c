"""Two ranks against one, and against two trainings that do not know of each other; weaver-core's DDP beside it.

    python benchmarks/bench_ddp.py --data DIR [--rounds 6] [--steps 4] [--batch-size 64]

DIR is a folder of JetClass files; those of ZToQQ and ZJetsToNuNu (QCD) are used. The paper's ParT trains in the real
engine, `--batch-size` jets per rank, one pinned core each; in every round all configurations train on the same jets.
The last line is one JSON object, medians over the rounds:

ddp_2_over_1 : jets/s of two ranks over jets/s of one with the same number of jets per rank.
ddp_over_independent : jets/s of two ranks over those of two single-rank trainings running at once, the same jets.
ddp_cpu_over_independent : CPU time of the two single-rank trainings over that of the two ranks, the same jets: what is
    below 1 is work, the rest of what is missing in ddp_over_independent is waiting for the slower rank.
weaver_ddp_* : the same of weaver-core's own model and DDP.
*_jets_per_s : of each configuration.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import numpy as np
from part import MODEL, SEED, weaver_inputs
from peer import Partner, Peer

from bhive_mltf import config as configs
from bhive_mltf.data.loader.loader import BatchLoader
from bhive_mltf.data.loader.rank_shares import assign, work
from bhive_mltf.data.ntuples.root_dataset import open_root
from bhive_mltf.models import registry
from bhive_mltf.training.plan import TrainingPlan

WARM_UP = 1  # steps


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def environments(cores: Sequence[int]) -> dict[str, list[dict[str, str]]]:
    """Of the processes of each configuration."""
    alone = [{"CORE": str(core), "SHARE": str(share), "OMP_NUM_THREADS": "1"} for share, core in enumerate(cores)]
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [{**own, **meeting, "RANK": own["SHARE"], "LOCAL_RANK": own["SHARE"]} for own in alone]
    return {"alone": alone, "ddp": ranks}


class Contestant:
    """The processes of one implementation: two single trainings, and two ranks."""

    def __init__(self, alone: Sequence[Partner], ddp: Sequence[Partner], batch_size: int) -> None:
        self.groups = {"one": alone[:1], "independent": alone, "ddp": ddp}
        self.batch_size = batch_size
        self.speeds: dict[str, list[float]] = {name: [] for name in self.groups}
        self.cpu: dict[str, list[float]] = {name: [] for name in self.groups}

    def warm_up(self) -> None:
        for partners in (self.groups["independent"], self.groups["ddp"]):
            for partner in partners:
                assert partner.about["parameters"] > 2e6
            self._run(partners, 1, WARM_UP)

    def round(self, start: int, steps: int) -> None:
        for name, partners in self.groups.items():
            answers = self._run(partners, start, steps)
            self.speeds[name].append(sum(self.batch_size * steps / answer["seconds"] for answer in answers))
            self.cpu[name].append(sum(answer["cpu_seconds"] for answer in answers))

    def _run(self, partners: Sequence[Partner], start: int, steps: int) -> list[dict[str, float]]:
        for partner in partners:
            partner.send(start=start, steps=steps)
        return [partner.answer() for partner in partners]

    def ratios(self, over: str) -> list[float]:
        return [ddp / other for ddp, other in zip(self.speeds["ddp"], self.speeds[over], strict=True)]

    def figures(self, prefix: str) -> dict[str, float]:
        found = {
            f"{prefix}ddp_2_over_1": statistics.median(self.ratios("one")),
            f"{prefix}ddp_over_independent": statistics.median(self.ratios("independent")),
            f"{prefix}ddp_cpu_over_independent": statistics.median(
                alone / ddp for alone, ddp in zip(self.cpu["independent"], self.cpu["ddp"], strict=True)
            ),
        }
        return found | {f"{prefix}{name}_jets_per_s": statistics.median(s) for name, s in self.speeds.items()}


def jetclass_files(data: Path) -> list[str]:
    files = sorted(str(path) for process in ("ZToQQ", "ZJetsToNuNu") for path in data.glob(f"{process}_*.root"))
    if not files:
        raise SystemExit(f"{data} has no ZToQQ_*.root and ZJetsToNuNu_*.root")
    return files


def write_batches(plan: TrainingPlan, files: Sequence[str], n_batches: int, path: Path, ranks: int = 2) -> None:
    """The first global batches as weaver's inputs, with the rank of each jet: as we deal them, and in order."""
    with open_root(plan.config, files, seed=plan.seed) as dataset:
        model = registry.create(MODEL, plan.config)
        loader = BatchLoader(
            dataset, range(int(len(dataset) * plan.train_val_split)), model.inputs, mode="training",
            batch_size=plan.batch_size, seed=plan.seed, weighted=False,
        )  # fmt: skip
        arrays: dict[str, list[np.ndarray]] = {name: [] for name in ("x", "v", "mask", "target", "dealt", "in_order")}
        shares = loader.shares(0)
        for batch in islice(loader.epoch(0), n_batches):
            for name, values in weaver_inputs(model, batch).items():
                arrays[name].append(values)
            positions = np.concatenate([part.positions for part in next(shares).parts])
            arrays["dealt"].append(assign(work(dataset.index, positions, model.inputs), ranks))
            arrays["in_order"].append(np.arange(len(batch)) * ranks // len(batch))
        np.savez(path, **{name: np.stack(values) for name, values in arrays.items()})


def start(place: Path, plan: TrainingPlan, cores: Sequence[int], stack: ExitStack) -> dict[str, Contestant]:
    script = [sys.executable, str(Path(__file__).with_name("ddp_rank.py")), str(plan.path)]
    ours = {
        kind: [stack.enter_context(Partner(script, {**os.environ, **own})) for own in own_environments]
        for kind, own_environments in environments(cores).items()
    }
    arguments = {"alone": [str(place / "batches.npz"), "dealt"], "ddp": [str(place / "batches.npz"), "in_order"]}
    peers = {
        kind: [stack.enter_context(Peer("weaver_ddp.py", arguments[kind], own)) for own in own_environments]
        for kind, own_environments in environments(cores).items()
    }
    size = plan.batch_size // 2
    return {"": Contestant(**ours, batch_size=size), "weaver_": Contestant(**peers, batch_size=size)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("two ranks need two cores")
    files = jetclass_files(options.data)
    config = configs.with_reference(configs.load("jet_class"), "label_QCD")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        place = Path(folder)
        plan = TrainingPlan(
            directory=place, dataset=place / "none", root_files=files, config=config, model_name=MODEL, epochs=1,
            batch_size=2 * options.batch_size, loss_weighting=True, n_threads=0, tracking=False, seed=SEED,
        )  # fmt: skip
        plan.write()
        # held open, so that the ranks share one conversion
        stack.enter_context(open_root(config, files, seed=SEED))
        write_batches(plan, files, 1 + options.rounds * options.steps, place / "batches.npz")
        contestants = start(place, plan, cores, stack)
        for contestant in contestants.values():
            contestant.warm_up()
        for number in range(options.rounds):
            for prefix, contestant in contestants.items():
                contestant.round(1 + number * options.steps, options.steps)
                speeds = {name: round(found[-1], 1) for name, found in contestant.speeds.items()}
                print(f"round {number + 1} {prefix or 'ours_'}jets/s", json.dumps(speeds), flush=True)
        figures = {k: v for prefix, contestant in contestants.items() for k, v in contestant.figures(prefix).items()}
        print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
