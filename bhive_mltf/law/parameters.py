"""Upstream's parameter mixins: plain classes over `store_parts()` and `super()`, to be used before BaseTask.

New path parts appear only for values that are not upstream's default.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import law
import luigi

if TYPE_CHECKING:

    class Host:
        """The task class that stands behind a mixin in a task's bases."""

        task_family: str

        def store_parts(self) -> tuple[str, ...]:
            """Path parts below `$DATA_PATH`."""

        def local_path(self, *path: str) -> str:
            """A path below the task's outputs."""

        def deps(self) -> list[Any]:
            """The tasks that this one needs, for the scheduler."""

        def complete(self) -> bool:
            """Whether the outputs are there."""

        def run(self) -> None:
            """Do the work."""

        def publish_message(self, msg: str, *, scheduler: bool = True) -> None:
            """Show a line to the person at the terminal."""

        @classmethod
        def get_params(cls) -> list[tuple[str, luigi.Parameter]]:
            """Names and parameters."""
else:
    Host = object


def technical(parameter: type[luigi.Parameter], **kwargs: object) -> luigi.Parameter:
    """A parameter that does not change the result, and so not the task."""
    return parameter(significant=False, **kwargs)


class DatasetDependency(Host):
    """The training set."""

    dataset_version = luigi.Parameter(default="dataset_version_01", description="version of the training set")
    filelist = luigi.Parameter(default="", significant=False, description="list of ROOT files, one per line")
    training_precision = luigi.Parameter(
        default="float32",
        description="float32, tf32, bf16, fp16 (autocast), float64; float16: rounded inputs",
    )
    reference_flavour = luigi.Parameter(
        default="", description="truth label whose pt/eta shape the others are weighted to; empty: the config's"
    )
    weighting = luigi.ChoiceParameter(
        default="reference",
        choices=["reference", "balanced"],
        description="weights of the jets: upstream's shape of the reference flavour, or equal yields and merged sparse "
        "bins too; own path part unless 'reference'",
    )
    skip_bad_files = technical(
        luigi.BoolParameter, default=False, description="leave out unreadable files, count and record them"
    )

    def store_parts(self) -> tuple[str, ...]:
        parts = (*super().store_parts(), self.dataset_version)
        return parts if self.weighting == "reference" else (*parts, f"weighting_{self.weighting}")


class ValDatasetDependency(Host):
    """A validation set of its own, in place of a part of the training set. No path part, as with upstream."""

    val_dataset_version = luigi.OptionalParameter(
        default=None, description="version of the validation set; empty: the training set is split"
    )
    val_filelist = technical(luigi.Parameter, default="", description="list of ROOT files of the validation set")


class TestDatasetDependency(Host):
    """The set of jets that is evaluated."""

    test_dataset_version = luigi.Parameter(default="dataset_version_01", description="version of the test set")
    test_filelist = luigi.Parameter(default="", significant=False, description="list of ROOT files of the test set")
    testing_precision = luigi.Parameter(
        default="float32", description="of the computation in inference: float32, float64; float16: rounded inputs"
    )

    def store_parts(self) -> tuple[str, ...]:
        return (*super().store_parts(), self.test_dataset_version)


class TrainingDependency(Host):
    """The training and how it runs."""

    training_version = luigi.Parameter(default="training_version_01", description="version of the training")
    epochs = luigi.IntParameter(default=1, description="passes over the training jets")
    use_iterations = luigi.BoolParameter(default=False, description="train by iterations; with --epochs 0")
    total_iterations = luigi.IntParameter(default=0, description="iterations to train, with --use-iterations True")
    n_iters_per_save = luigi.IntParameter(default=20000, description="iterations between validations and models")
    model_name = luigi.Parameter(
        description="name in the model registry, of an entry point, or package.module:Class of another package"
    )
    n_threads = luigi.IntParameter(default=4, description="loader workers per rank; 0 loads in the rank itself")
    batch_size = luigi.IntParameter(default=1024, description="jets of a global batch, all ranks together")
    learning_rate = luigi.FloatParameter(default=1e-3)
    optimizer = luigi.Parameter(default="AdamW")
    loss_function = luigi.Parameter(default="CrossEntropyLoss")
    betas = law.CSVParameter(cls=luigi.FloatParameter, default=(0.95, 0.999))
    eps = luigi.FloatParameter(default=1e-6)
    weight_decay = luigi.OptionalFloatParameter(default=None, description="empty: the optimizer's own default")
    lr_scheduler = luigi.Parameter(default="epoch_lin_decay")
    lr_decay_factor = luigi.FloatParameter(default=1e-2)
    mixed_precision = luigi.BoolParameter(default=False, description="autocast: float16 on a GPU, bfloat16 on a CPU")
    clip_norm = luigi.FloatParameter(
        default=-1.0, description="norm that gradients are clipped to; 0: never; -1: 1 under autocast, else never"
    )
    use_torch_compile = luigi.BoolParameter(default=False)
    torch_compile_mode = luigi.Parameter(default="default")
    model_kwargs = luigi.DictParameter(default={}, description="sizes of the model as JSON; own path part")
    unmatched = luigi.ChoiceParameter(
        default="error",
        choices=["error", "drop", "first"],
        description="jets with a truth label of the dataset but in none of the model's classes",
    )
    ranks_per_node = technical(
        luigi.IntParameter, default=0, description="processes per node; 0: one per visible GPU, else one"
    )
    nodes = technical(luigi.IntParameter, default=1, description="machines")
    threads_per_rank = technical(luigi.IntParameter, default=0, description="compute threads of a rank; 0: automatic")
    deterministic = technical(
        luigi.BoolParameter, default=False, description="only algorithms that give the same bits each time; slower"
    )
    tracking = technical(luigi.BoolParameter, default=True, description="track in MLflow")

    def store_parts(self) -> tuple[str, ...]:
        # a colon in a path would be read as a host, or as the end of it
        model = self.model_name.replace(":", ".")
        parts = (*super().store_parts(), self.training_version, model, f"epochs_{self.epochs}")
        if not self.model_kwargs:
            return parts
        canonical = json.dumps(self.plain_model_kwargs(), sort_keys=True, separators=(",", ":"))
        return (*parts, "kwargs_" + hashlib.sha256(canonical.encode()).hexdigest()[:10])

    def plain_model_kwargs(self) -> dict[str, object]:
        """The sizes of the model as plain JSON values."""
        plain: dict[str, object] = json.loads(luigi.DictParameter().serialize(self.model_kwargs))
        return plain


class AttackDependency(Host):
    """Adversarial training."""

    attack = luigi.Parameter(default="nominal")
    attack_magnitude = luigi.FloatParameter(default=0.0)
    attack_iterations = luigi.IntParameter(default=1)
    attack_individual_factors = luigi.BoolParameter(default=False)
    attack_reduce = luigi.BoolParameter(default=True)
    attack_restrict_impact = luigi.FloatParameter(default=-1.0)
    attack_overshoot = luigi.FloatParameter(default=0.02)
    attack_uncertainty = luigi.FloatParameter(default=1.0)

    def store_parts(self) -> tuple[str, ...]:
        return (*super().store_parts(), *attack_parts("", self))


class TestAttackDependency(Host):
    """Adversarial inputs in inference."""

    test_attack = luigi.Parameter(default="nominal")
    test_attack_magnitude = luigi.FloatParameter(default=0.0)
    test_attack_iterations = luigi.IntParameter(default=1)
    test_attack_individual_factors = luigi.BoolParameter(default=False)
    test_attack_reduce = luigi.BoolParameter(default=True)
    test_attack_restrict_impact = luigi.FloatParameter(default=-1.0)
    test_attack_overshoot = luigi.FloatParameter(default=0.02)
    test_attack_uncertainty = luigi.FloatParameter(default=1.0)

    def store_parts(self) -> tuple[str, ...]:
        return (*super().store_parts(), *attack_parts("test_", self))


def attack_parts(prefix: str, task: AttackDependency | TestAttackDependency) -> tuple[str, ...]:
    """Path parts of an attack; `prefix` is empty for training and `test_` for inference."""

    def value(name: str) -> Any:
        return getattr(task, f"{prefix}attack{name}")

    name = value("")
    parts = [f"test_attack_{name}" if prefix else str(name)]
    if value("_magnitude") > 0:
        parts += [f"{prefix}epsilon_{value('_magnitude')}", f"{prefix}iterations_{value('_iterations')}"]
    if name == "jetfool":
        parts.append(f"{prefix}overshoot_{value('_overshoot')}")
    if name == "optimizer":
        parts.append(f"uncertainty_{value('_uncertainty')}")
    return tuple(parts)
