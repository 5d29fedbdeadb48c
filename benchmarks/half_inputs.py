"""Does it matter to a tagger that its inputs are stored as float16?

    python benchmarks/half_inputs.py --btag DIR --jetclass DIR [--seeds 3] [--scratch DIR]

Trains DeepJet and a small ParT from the same seeds on training sets that store the inputs as float32 and as float16,
and evaluates on other files. What is compared is the AUC of each discriminator:

stored : float16 in training and evaluation against float32 in both, seed by seed.
evaluated : the network trained on float32, evaluated on float16 inputs against float32 inputs.

The last line is one JSON object: per model and discriminator the AUC with float32 (mean over seeds), its spread over
seeds (standard deviation) and statistical error, and mean and spread of both differences. One process, one thread.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from bench_convert import construct_set, stage_files
from common import conditions

from bhive_mltf import config as configs
from bhive_mltf.config import Config
from bhive_mltf.data.dataset import open_dataset
from bhive_mltf.data.loader.loader import BatchLoader
from bhive_mltf.evaluation.discriminators import VS_REST, discriminators, softmax
from bhive_mltf.evaluation.predictions import predict
from bhive_mltf.evaluation.statistics import Area, area
from bhive_mltf.training.checkpointing.best_model import load_best_model
from bhive_mltf.training.launch import launch
from bhive_mltf.training.plan import TrainingPlan

PRECISIONS = ("float32", "float16")


@dataclass(frozen=True)
class Study:
    """A model, its files (by the ends of their names) and its training; `most_candidates` of a jet are read."""

    config: str
    model: str
    train: Sequence[str]
    test: Sequence[str]
    epochs: int
    batch_size: int
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    most_candidates: int | None = None


STUDIES = {
    "btag": Study("offline_run3", "DeepJet", ("_000.root", "_001.root"), ("_002.root",), 6, 256),
    "jetclass": Study(
        "jet_class",
        "ParticleTransformer_JetClass",
        ("ZJetsToNuNu_000.root", "HToBB_000.root", "TTBar_000.root"),
        ("ZJetsToNuNu_001.root", "HToBB_001.root", "TTBar_001.root"),
        2,
        64,
        {"num_layers": 1, "num_cls_layers": 1, "embed_dim": 32},
        most_candidates=30,
    ),
}


def files_of(folder: Path, ends: Sequence[str]) -> list[str]:
    return sorted(str(path) for path in folder.glob("*.root") if path.name.endswith(tuple(ends)))


def make_sets(study: Study, folder: Path, scratch: Path, precision: str) -> Config:
    """Training and test set with inputs stored in a precision; the config that they were made with."""
    config = configs.load(study.config)
    if study.most_candidates is not None:
        shorter = Path(config.source).read_text(encoding="utf-8")
        shorter = re.sub(r"n_cpf_candidates: \d+", f"n_cpf_candidates: {study.most_candidates}", shorter)
        scratch.mkdir(parents=True, exist_ok=True)
        (scratch / f"{study.config}.yml").write_text(shorter, encoding="utf-8")
        config = configs.load(str(scratch / f"{study.config}.yml"))
    config = config.model_copy(update={"data_precision": precision})
    for part in ("train", "test"):
        files = files_of(folder, getattr(study, part))
        stage_files(config, files, scratch / precision / part)
        construct_set(config, files, scratch / precision / part)
    return config


def train(study: Study, config: Config, place: Path, seed: int) -> torch.nn.Module:
    plan = TrainingPlan(
        directory=place / f"seed_{seed}",
        dataset=place / "train" / "set",
        config=config,
        model_name=study.model,
        model_kwargs=dict(study.kwargs),
        epochs=study.epochs,
        batch_size=study.batch_size,
        loss_weighting=True,
        unmatched="drop",
        seed=seed,
        n_threads=0,
        ranks_per_node=1,
        threads_per_rank=1,
        tracking=False,
    )
    launch(plan)
    return load_best_model(plan.directory, config, study.model, study.kwargs)


def areas(model: Any, config: Config, place: Path) -> dict[str, Area]:
    """AUC by discriminator, of those whose classes have jets."""
    dataset = open_dataset(place / "test" / "set", config)
    jets = range(len(dataset))
    options: dict[str, Any] = {"mode": "inference", "batch_size": 256, "seed": 1, "weighted": False}
    loader = BatchLoader(dataset, jets, model.inputs, unmatched="drop", **options)
    found = predict(model, loader.epoch(0), "cpu", len(jets))
    values = softmax(found.logits)
    result = {}
    for one in discriminators([name for name, _ in model.inputs.classes]):
        signal, background = (values[:, list(which)].sum(axis=1) for which in (one.signal, one.background))
        score = signal / (signal + background).clip(1e-30)
        chosen = [sum(found.truth == i for i in which) > 0 for which in (one.signal, one.background)]
        if one.family != VS_REST and all(which.any() for which in chosen):
            result[one.label] = area(score[chosen[0]], score[chosen[1]])
    return result


def run(study: Study, folder: Path, scratch: Path, seeds: int) -> dict[str, dict[str, float]]:
    made = {precision: make_sets(study, folder, scratch, precision) for precision in PRECISIONS}
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed in range(1, seeds + 1):
        models = {p: train(study, made[p], scratch / p, seed) for p in PRECISIONS}
        full = areas(models["float32"], made["float32"], scratch / "float32")
        cases = {"stored": models["float16"], "evaluated": models["float32"]}
        others = {case: areas(model, made["float16"], scratch / "float16") for case, model in cases.items()}
        for label, one in full.items():
            found[label]["auc"].append(one.auc)
            found[label]["error"].append(one.error)
            for case, other in others.items():
                found[label][case].append(other[label].auc - one.auc)
        print(
            study.model, "seed", seed, {label: {k: round(v[-1], 5) for k, v in d.items()} for label, d in found.items()}
        )
    return {label: summary(lists) for label, lists in found.items()}


def summary(lists: Mapping[str, Sequence[float]]) -> dict[str, float]:
    result = {"auc": statistics.mean(lists["auc"]), "auc_error": statistics.mean(lists["error"])}
    for name in ("auc", "stored", "evaluated"):
        result[f"{name}_spread"] = statistics.stdev(lists[name])
        result[name] = statistics.mean(lists[name])
    result["largest_evaluated"] = max(map(abs, lists["evaluated"]))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, study in STUDIES.items():
        parser.add_argument(f"--{name}", type=Path, help=f"folder of the files for {study.model}")
    parser.add_argument("--seeds", type=int, default=3, help="at least 2")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for what is written; default: temporary")
    arguments = parser.parse_args()
    logging.getLogger("bhive_mltf").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    result = {}
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        for name, study in STUDIES.items():
            folder = getattr(arguments, name)
            if folder is not None:
                conditions(files_of(folder, [*study.train, *study.test]))
                result[study.model] = run(study, folder, Path(scratch) / name, arguments.seeds)
    for model, rows in result.items():
        for label, row in rows.items():
            print(f"{model:<30}{label:<12}" + "".join(f"{key} {value:.5f}  " for key, value in row.items()))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
