"""Model and loaders of a training, built from its plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from bhive_mltf.attacks.factors import Factors, feature_factors
from bhive_mltf.data.loader import order
from bhive_mltf.files import node_copy
from bhive_mltf.interface import Batch
from bhive_mltf.ranks.distributed import World
from bhive_mltf.training.plan import TrainingPlan

if TYPE_CHECKING:
    from bhive_mltf.data.dataset import Dataset


class Loader(Protocol):
    """Batches of a part of the training set; see `bhive_mltf.data.loader.loader.BatchLoader`."""

    def n_batches(self, epoch: int) -> int:
        """Global batches of an epoch, exactly."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Slices for one rank of the global batches of an epoch, from batch `start` on."""


@dataclass(frozen=True)
class Ingredients:
    """Everything that is trained, and what names it.

    class_weights : float32 [C] for the loss, None without `loss_weighting`.
    dataset_digest, config_digest, classes, inputs : plain values kept in checkpoints.
    val_dataset_digest : of a validation set of its own, else empty.
    attack_factors : units of the changes of an attack with individual factors, else None.
    jet_files : what the ids of training jets mean, see `data.dataset.describe_files`.
    """

    model: nn.Module
    training: Loader
    validation: Loader
    class_weights: Tensor | None
    dataset_digest: str
    config_digest: str
    classes: list[Any]
    inputs: dict[str, Any]
    val_dataset_digest: str = ""
    attack_factors: Factors | None = None
    jet_files: dict[str, Any] = field(default_factory=dict)


Builder = Callable[[TrainingPlan, World], Ingredients]  # see `build`


def seed_model(seed: int) -> None:
    """Seed torch for the first weights, alike on all ranks."""
    torch.manual_seed(order.random_key(seed, "model"))


def open_training_set(plan: TrainingPlan) -> Dataset:
    """The training set of a plan; of ROOT files that are read on the fly, as long as the returned object lives."""
    from bhive_mltf.data.dataset import open_dataset

    if not plan.root_files:
        return open_dataset(node_copy.find(plan.dataset), plan.config, plan.dataset_sidecar)
    from bhive_mltf.data.ntuples.jobs import ReadOptions
    from bhive_mltf.data.ntuples.root_dataset import open_root

    return open_root(
        plan.config,
        plan.root_files,
        seed=plan.seed,
        weighting=plan.weighting,
        skip_bad_files=plan.skip_bad_files,
        options=ReadOptions.for_debugging() if plan.debug else None,
    )


def open_validation_set(plan: TrainingPlan) -> Dataset | None:
    """The validation set of a plan; None for one that splits its training set."""
    from bhive_mltf.data.dataset import open_dataset

    if plan.val_dataset is None:
        return None
    dataset = open_dataset(node_copy.find(plan.val_dataset), plan.config, plan.directory / "val_dataset")
    _refuse_test_set(dataset)
    return dataset


def _refuse_test_set(dataset: Dataset) -> None:
    from bhive_mltf.data.weighting.methods import NONE
    from bhive_mltf.errors import DataError

    if dataset.manifest.weighting == NONE:
        raise DataError(
            f"'{dataset.directory}' was made as a test set, from jets without the reference flavour or with one truth "
            "label: build a training set of its own under another --dataset-version"
        )


def _split(plan: TrainingPlan, dataset: Dataset) -> tuple[range, tuple[Dataset, range]]:
    """The jets that train, and those that validate with the set that they are in."""
    from bhive_mltf.data.loader.batch_plan import split_ranges, training_range

    validation_set = open_validation_set(plan)
    if validation_set is None:
        training, validation = split_ranges(dataset, plan.train_val_split, plan.n_train_files)
        return training, (dataset, validation)
    return training_range(dataset, plan.n_train_files), (validation_set, range(len(validation_set)))


def build(plan: TrainingPlan, world: World) -> Ingredients:
    """Open the training set and build model and loaders of this rank."""
    from bhive_mltf.data.dataset import describe_files
    from bhive_mltf.data.loader.loader import BatchLoader
    from bhive_mltf.models import registry
    from bhive_mltf.training.losses import class_weights

    config = plan.config
    dataset = open_training_set(plan)
    _refuse_test_set(dataset)
    seed_model(plan.seed)
    model = registry.create(plan.model_name, config, function_version=plan.model_function, **plan.model_kwargs)
    train_jets, (validation_set, validation_jets) = _split(plan, dataset)
    common: dict[str, Any] = {
        "batch_size": plan.batch_size,
        "rank": world.rank,
        "world_size": world.size,
        "n_threads": plan.n_threads,
        "seed": plan.seed,
        # upstream samples both parts unless the loss is weighted
        "weighted": not plan.loss_weighting,
        "unmatched": plan.unmatched,
        "process_weights": config.process_weights,
        "pin_memory": world.device.type == "cuda",
        "config": config,
    }
    classes = model.inputs.classes
    return Ingredients(
        model=model,
        training=BatchLoader(
            dataset,
            train_jets,
            model.inputs,
            mode="training",
            multiplicity_buckets=plan.multiplicity_buckets,
            **common,
        ),
        validation=BatchLoader(validation_set, validation_jets, model.inputs, mode="validation", **common),
        class_weights=(
            class_weights(dataset.histogram, dataset.schema.truths, classes) if plan.loss_weighting else None
        ),
        dataset_digest=dataset.manifest.digest,
        val_dataset_digest="" if validation_set is dataset else validation_set.manifest.digest,
        config_digest=config.dataset_digest,
        classes=[[name, list(labels)] for name, labels in classes],
        inputs=asdict(model.inputs),
        attack_factors=feature_factors(dataset, model.inputs) if plan.attack_individual_factors else None,
        jet_files=describe_files(dataset),
    )
