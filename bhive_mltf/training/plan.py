"""The plan of a training: one JSON file with everything that a rank needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bhive_mltf.attacks.options import AttackOptions
from bhive_mltf.config import Config
from bhive_mltf.errors import ParameterError
from bhive_mltf.files import atomic
from bhive_mltf.files.text import read_text
from bhive_mltf.training import choices

FILE_NAME = "plan.json"


@dataclass(frozen=True)
class Decides:
    """Mark of a plan's field that decides weights and histories; two plans that differ there are two trainings.

    in_path : the field is part of the path of the outputs; else `parameters.json` keeps it (`files.records`).
    """

    in_path: bool = False


_RESULT, _PATH = Decides(), Decides(in_path=True)


class TrainingPlan(BaseModel):
    """What to train, on what, and how; frozen. A value out of its range is a ParameterError.

    Every name is the task parameter of that name; `batch_size` counts the jets of the global batch, all ranks
    together. Without `val_dataset` the training set is split. `weight_decay` None means the optimiser's own default.
    `threads_per_rank` 0 means one thread on a CPU with several ranks, else torch's choice. `ranks_per_node` 0 means
    one per visible GPU, else one. `checkpoint_steps` 0 means at epoch ends and every ten minutes. With `root_files`
    these are read on the fly (`data.ntuples.root_dataset`) and `dataset` is not looked at; `weighting`,
    `skip_bad_files` and `debug` then say how, as for a constructed set. `model_function` is the version of the model's
    function (`models.registry`): 1 in plans from before there was another. `start_from` is a checkpoint whose weights
    the training begins with; empty: with random ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    directory: Path
    dataset: Path
    dataset_sidecar: Path | None = None
    val_dataset: Path | None = None
    val_dataset_version: Annotated[str | None, _RESULT] = None
    root_files: tuple[str, ...] = ()
    weighting: str = "reference"
    skip_bad_files: bool = False
    debug: bool = False
    config: Config
    model_name: Annotated[str, _PATH]
    model_kwargs: Annotated[dict[str, Any], _PATH] = Field(default_factory=dict)
    model_function: int = 1
    start_from: Annotated[str, _RESULT] = ""
    epochs: Annotated[int, _PATH] = 1
    use_iterations: Annotated[bool, _RESULT] = False
    total_iterations: Annotated[int, _RESULT] = 0
    n_iters_per_save: Annotated[int, _RESULT] = 20000
    extend_training: int = 0
    batch_size: Annotated[int, _RESULT] = 1024
    learning_rate: Annotated[float, _RESULT] = 1e-3
    optimizer: Annotated[str, _RESULT] = "AdamW"
    betas: Annotated[tuple[float, float], _RESULT] = (0.95, 0.999)
    eps: Annotated[float, _RESULT] = 1e-6
    weight_decay: Annotated[float | None, _RESULT] = None
    loss_function: Annotated[str, _RESULT] = "CrossEntropyLoss"
    lr_scheduler: Annotated[str, _RESULT] = "epoch_lin_decay"
    lr_decay_factor: Annotated[float, _RESULT] = 1e-2
    mixed_precision: Annotated[bool, _RESULT] = False
    clip_norm: Annotated[float, _RESULT] = -1.0
    use_torch_compile: bool = False
    torch_compile_mode: str = "default"
    training_precision: Annotated[str, _RESULT] = "float32"
    loss_weighting: Annotated[bool, _RESULT] = False
    train_val_split: Annotated[float, _RESULT] = 0.85
    n_train_files: Annotated[int, _RESULT] = -1
    multiplicity_buckets: Annotated[int, _RESULT] = 0
    unmatched: Annotated[str, _RESULT] = "error"
    attack: Annotated[str, _PATH] = "nominal"
    attack_magnitude: Annotated[float, _RESULT] = 0.0
    attack_iterations: Annotated[int, _RESULT] = 1
    attack_individual_factors: Annotated[bool, _RESULT] = False
    attack_reduce: Annotated[bool, _RESULT] = True
    attack_restrict_impact: Annotated[float, _RESULT] = -1.0
    attack_overshoot: Annotated[float, _RESULT] = 0.02
    attack_uncertainty: Annotated[float, _RESULT] = 1.0
    seed: Annotated[int, _RESULT] = 123456
    n_threads: int = 4
    nodes: int = 1
    ranks_per_node: int = 0
    threads_per_rank: int = 0
    deterministic: bool = False
    profile_steps: int = 0
    checkpoint_steps: int = 0
    keep_checkpoints: int = 2
    keep_all_epochs_models: bool = True
    nested_metrics: bool = False
    tracking: bool = True
    generation: str = ""
    verbose: bool = False
    terminal_plot: bool = False

    def __init__(self, **values: Any) -> None:  # noqa: ANN401 - pydantic checks them
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ParameterError(_sentence(error)) from None

    @model_validator(mode="after")
    def _check(self) -> TrainingPlan:
        for fields, holds, requirement in _RANGES:
            for field in fields:
                value = getattr(self, field)
                if not holds(value):
                    raise ValueError(f"{field} is {value!r}, but must be {requirement}")
        for field, valid in _CHOICES:
            value = getattr(self, field)
            if value not in valid:
                raise ValueError(f"{field} is {value!r}, but must be one of {', '.join(valid)}")
        AttackOptions.of(self)
        for is_wrong, sentence in _COMBINATIONS:
            if is_wrong(self):
                raise ValueError(sentence.format_map(vars(self)))
        return self

    @property
    def path(self) -> Path:
        """Where the plan lies."""
        return self.directory / FILE_NAME

    @property
    def last_number(self) -> int:
        """Number of the last `model_<number>.pt`: the last epoch (from 0, -1 if there is none) or iteration."""
        if self.use_iterations:
            return self.total_iterations + self.extend_training
        return self.epochs + self.extend_training - 1

    @property
    def attack_options(self) -> AttackOptions:
        """The attack on the training jets."""
        return AttackOptions.of(self)

    def write(self) -> Path:
        """Write the plan to its directory; returns the path."""
        atomic.write_text(self.path, self.model_dump_json(indent=2) + "\n")
        return self.path

    @classmethod
    def read(cls, path: str | Path) -> TrainingPlan:
        """The plan in this file; ParameterError if it is none."""
        try:
            text = read_text(path)
        except OSError as error:
            raise ParameterError(f"The training plan {path} cannot be read: {error.strerror}") from error
        return cls.model_validate_json(text)


def _marked(*marks: Decides) -> tuple[str, ...]:
    return tuple(n for n, field in TrainingPlan.model_fields.items() if any(mark in field.metadata for mark in marks))


RESULT_FIELDS = _marked(_RESULT, _PATH)
NOT_IN_THE_PATH = _marked(_RESULT)

_RANGES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (("epochs", "total_iterations", "extend_training", "n_threads"), lambda n: n >= 0, "0 or more"),
    (("n_iters_per_save", "batch_size", "nodes", "keep_checkpoints"), lambda n: n >= 1, "at least 1"),
    (("learning_rate", "eps", "lr_decay_factor"), lambda x: 0 < x < math.inf, "a number above 0"),
    (("betas",), lambda b: all(0 <= x < 1 for x in b), "two numbers in [0, 1)"),
    (("weight_decay",), lambda x: x is None or 0 <= x < math.inf, "0 or more"),
    (("clip_norm",), lambda x: x == -1 or 0 <= x < math.inf, "-1 (1 under autocast, else none), 0 (none) or above"),
    (("train_val_split",), lambda x: 0 < x <= 1, "a number in (0, 1]"),
    (("n_train_files",), lambda n: n == -1 or n >= 1, "-1 (all) or at least 1"),
    (("multiplicity_buckets", "profile_steps"), lambda n: n >= 0, "0 (off) or more"),
    (("ranks_per_node", "threads_per_rank", "checkpoint_steps"), lambda n: n >= 0, "0 (automatic) or more"),
)
_CHOICES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("optimizer", choices.OPTIMIZERS),
    ("lr_scheduler", choices.SCHEDULES),
    ("loss_function", choices.LOSSES),
    ("training_precision", choices.PRECISIONS),
    ("unmatched", choices.UNMATCHED),
    ("torch_compile_mode", choices.COMPILE_MODES),
)


_COMBINATIONS: tuple[tuple[Callable[[TrainingPlan], bool], str], ...] = (
    (
        lambda plan: plan.nodes * plan.ranks_per_node > plan.batch_size,
        "ranks_per_node is {ranks_per_node} on {nodes} node(s), but a global batch has {batch_size} jets: use fewer",
    ),
    (
        lambda plan: plan.use_iterations and plan.epochs > 0,
        "epochs is {epochs}, but must be 0 with use_iterations, where total_iterations says how long to train",
    ),
    (
        lambda plan: plan.use_iterations and plan.total_iterations == 0,
        "total_iterations is 0, but must be at least 1 with use_iterations",
    ),
    (
        lambda plan: not plan.use_iterations and plan.total_iterations > 0,
        "total_iterations is {total_iterations}, but must be 0 without use_iterations",
    ),
    (
        lambda plan: plan.weight_decay is not None and plan.optimizer in choices.WITHOUT_WEIGHT_DECAY,
        "weight_decay is {weight_decay}, but must be left out for the optimizer {optimizer}, which has none",
    ),
    (
        lambda plan: plan.mixed_precision and plan.training_precision in {"tf32", "bf16", "fp16"},
        "mixed_precision is True beside training_precision '{training_precision}', but both set the products: take one",
    ),
)


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    if first["type"] == "value_error" and not first["loc"]:
        return str(first["ctx"]["error"])
    where = ".".join(map(str, first["loc"])) or "the plan"
    return f"{where} of the training plan is {first['input']!r}: {first['msg']}"
