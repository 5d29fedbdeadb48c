"""TrainingTask: train a model on a training set, on as many ranks as asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import law
import luigi

from bhive_mltf.files import records
from bhive_mltf.law import messages
from bhive_mltf.law.dispatch import SlurmDependency
from bhive_mltf.law.messages import refuse_early
from bhive_mltf.law.parameters import (
    AttackDependency,
    DatasetDependency,
    TrainingDependency,
    ValDatasetDependency,
    technical,
)
from bhive_mltf.law.tasks import checks
from bhive_mltf.law.tasks.base import BaseTask
from bhive_mltf.law.tasks.dataset import ConvertNtuples, DatasetConstructorTask

if TYPE_CHECKING:
    from bhive_mltf.slurm.profiles import Profile
    from bhive_mltf.training.plan import TrainingPlan


class TrainingTask(
    SlurmDependency, AttackDependency, TrainingDependency, ValDatasetDependency, DatasetDependency, BaseTask
):
    """Train; a training that was cut continues when its command is typed again."""

    loss_weighting = luigi.BoolParameter(
        default=False, description="use all jets and weight the loss by class, instead of sampling jets by weight"
    )
    resume_training = luigi.BoolParameter(default=False, description="accepted; an unfinished training always goes on")
    resume_epoch = luigi.IntParameter(
        default=0, description="go back to where N epochs (or iterations) were done; 0: off"
    )
    extend_training = luigi.IntParameter(
        default=0, description="train N epochs (or iterations) more in the same directory and run"
    )
    train_val_split = luigi.FloatParameter(default=0.85, description="fraction of the jets that train")
    n_train_files = luigi.IntParameter(default=-1, description="train on the first N shards only; -1: all")
    multiplicity_buckets = luigi.IntParameter(
        default=0, description="draw each batch from one of N buckets of jets with about as many candidates; 0: off"
    )
    restart = technical(luigi.BoolParameter, default=False, description="set aside what was trained, and begin anew")
    checkpoint_steps = technical(
        luigi.IntParameter, default=0, description="steps between checkpoints; 0: at epoch ends and every ten minutes"
    )
    keep_checkpoints = technical(luigi.IntParameter, default=2, description="step checkpoints that are kept")
    keep_all_epochs_models = technical(luigi.BoolParameter, default=True, description="keep the model of each epoch")
    read_root = technical(
        luigi.BoolParameter,
        default=False,
        description="train on the ROOT files of --filelist themselves, without DatasetConstructorTask; same jets, same "
        "batches, same result",
    )
    profile_steps = technical(
        luigi.IntParameter, default=0, description="trace N steps of rank 0 with torch's profiler; 0: off"
    )
    nested_metrics = technical(
        luigi.BoolParameter, default=False, description="also log upstream's nested run model_performance_metrics"
    )

    exclude_index = False
    exclude_params_req = {"restart", "read_root", "profile_steps"}
    # --TrainingTask-use-iterations True at a downstream task, as with upstream
    prefer_params_cli = {"use_iterations", "total_iterations", "n_iters_per_save"}

    @refuse_early(list)
    def requires(self) -> law.Task | list[law.Task]:
        self.check()
        sets = [*([] if self.read_root else [DatasetConstructorTask.req(self)]), *self.val_dataset()]
        return sets[0] if len(sets) == 1 else sets

    def val_dataset(self) -> list[DatasetConstructorTask]:
        """The validation set, when there is one of its own."""
        version = self.effective("val_dataset_version")
        if not version:
            return []
        return [DatasetConstructorTask.req(self, dataset_version=version, filelist=self.val_filelist)]

    def output(self) -> dict[str, law.LocalFileTarget]:
        return {
            "training_metrics": self.local_target("training_metrics.npz"),
            "validation_metrics": self.local_target("validation_metrics.npz"),
            "best_model": self.local_target("best_model.pt"),
            "model": self.local_target(f"model_{self.last_number()}.pt"),
        }

    def last_number(self) -> int:
        """Number of the last `model_<number>.pt`."""
        if self.effective("use_iterations"):
            return int(self.effective("total_iterations")) + self.extend_training
        return self.epochs - 1 + self.extend_training

    @refuse_early(bool)
    def complete(self) -> bool:
        if self.asks_for_a_change() or not super().complete():
            return False
        if self.filelist:
            checks.refuse_other_files(lambda: checks.read(self.filelist), self.filelist, self.local_path("root_files"))
        sets = [DatasetConstructorTask.req(self), *self.val_dataset()]
        if not all(dataset.complete() for dataset in sets if dataset.is_made()):
            return False
        self.hold_against_record()
        return True

    def run(self) -> None:
        from bhive_mltf.law.support import training, training_job

        train = training_job.train_as_job if self.is_dispatched else training.train
        train(self, Path(self.local_path()))

    def check(self) -> None:
        """Refuse what can be seen to be wrong before anything runs."""
        from bhive_mltf.models import registry
        from bhive_mltf.training.choices import check_loss

        checks.refuse_small_numbers(epochs=(self.epochs, 0), resume_epoch=(self.resume_epoch, 0))
        checks.refuse_contradictions(self)
        plan = self.plan()
        found = registry.entry(plan.model_name)
        if found.regression is not None:
            check_loss(plan.loss_function, plan.model_name, found.regression)
        if not messages.only_looking():
            model = registry.create(plan.model_name, plan.config, **plan.model_kwargs)
            check_loss(plan.loss_function, plan.model_name, model.regression)

    def profile(self) -> Profile:
        from bhive_mltf.slurm import job

        profile = super().profile()
        job.job_size(profile, self.nodes, self.ranks_per_node)
        return profile

    def plan(self) -> TrainingPlan:
        """Everything that a rank needs; ParameterError for a value out of its range."""
        from bhive_mltf.training.plan import TrainingPlan

        fields = set(TrainingPlan.model_fields) - {"directory", "dataset", "dataset_sidecar", "config", "model_kwargs"}
        fields -= {"root_files", "val_dataset"}
        directory = Path(self.local_path())
        val_dataset = [dataset.local_path() for dataset in self.val_dataset()]
        return TrainingPlan(
            directory=directory,
            dataset=DatasetConstructorTask.req(self).local_path(),
            dataset_sidecar=directory / "dataset",
            val_dataset=val_dataset[0] if val_dataset else None,
            config=self.load_config(),
            model_kwargs=self.plain_model_kwargs(),
            root_files=ConvertNtuples.req(self).input_files() if self.read_root else (),
            **{name: getattr(self, name) for name in fields if hasattr(self, name)},
        )

    def asks_for_a_change(self) -> bool:
        """True while this command still has to restart the training or take it back to an epoch."""
        from bhive_mltf.law.support import commands

        return (self.restart or self.resume_epoch > 0) and not commands.is_carried_out(self.local_path())

    def effective(self, name: str) -> Any:
        """A parameter of the result; the recorded value where the command leaves it at its default."""
        value = getattr(self, name)
        if value != self.defaults([name])[name]:
            return value
        record = records.Record.read(self.local_path())
        return record.parameters.get(name, value) if record is not None else value

    def result_parameters(self) -> dict[str, Any]:
        """What decides the weights and is not in the path."""
        from bhive_mltf.training.plan import NOT_IN_THE_PATH

        config = self.load_config().dataset_digest
        return {**{name: getattr(self, name) for name in NOT_IN_THE_PATH}, "config": config}
