"""TrainingTask: train a model on a training set, on as many ranks as asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import law
import luigi

from bhive_mltf.errors import ParameterError, SlurmError
from bhive_mltf.files import records
from bhive_mltf.law.mixins import MLflowMixin, RanksMixin, SlurmMixin
from bhive_mltf.law.mixins.run import Status, Work, refuse_nodes
from bhive_mltf.law.parameters import AttackDependency, TrainingDependency, ValDatasetDependency, technical
from bhive_mltf.law.tasks import checks
from bhive_mltf.law.tasks.dataset import ConvertNtuples, DatasetConstructorTask, DatasetTask

if TYPE_CHECKING:
    from bhive_mltf.slurm.client import Slurm
    from bhive_mltf.slurm.job import JobSpec
    from bhive_mltf.slurm.profiles import Profile
    from bhive_mltf.slurm.record import JobRecord
    from bhive_mltf.training.launch import TrainingRequest
    from bhive_mltf.training.plan import TrainingPlan

FIGURES = "bhive_mltf.law.plot_after_job"
# What a command does to a training; no parameters of the result.
COMMANDS = ("resume_training", "resume_epoch", "extend_training")


class TrainingTask(
    SlurmMixin, MLflowMixin, RanksMixin, AttackDependency, TrainingDependency, ValDatasetDependency, DatasetTask
):
    """Train; a training that was cut continues when its command is typed again.

    The mixins' ranks are here the engine's: they read a plan and know nothing of law.
    """

    # as all tasks after the training have it
    ranks_per_node = TrainingDependency.ranks_per_node

    loss_weighting = luigi.BoolParameter(
        default=False, description="use all jets and weight the loss by class, instead of sampling jets by weight"
    )
    start_from = luigi.Parameter(
        default="", description="checkpoint, of this package or of B-Hive, whose weights the training begins with"
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

    exclude_params_req = {"restart", "read_root", "profile_steps"}
    # --TrainingTask-use-iterations True at a downstream task, as with upstream
    prefer_params_cli = {"use_iterations", "total_iterations", "n_iters_per_save"}
    rank_module = "bhive_mltf.training"
    _prepared: TrainingPlan

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.restart or self.resume_epoch:
            from bhive_mltf.training.checkpointing.restart import command_token

            command_token()

    def requires(self) -> law.Task | list[law.Task]:
        if self.is_refused():
            return []
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
        by_iterations = self.effective("use_iterations")
        last = self.effective("total_iterations") if by_iterations else self.epochs - 1
        return int(last + self.extend_training)

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

    def check(self) -> None:
        from bhive_mltf.models import registry
        from bhive_mltf.training.choices import check_loss

        checks.refuse_small_numbers(epochs=(self.epochs, 0), resume_epoch=(self.resume_epoch, 0))
        self.refuse_contradictions()
        plan = self.plan()
        found = registry.entry(plan.model_name)
        if found.regression is not None:
            check_loss(plan.loss_function, plan.model_name, found.regression)

    def check_to_run(self) -> None:
        from bhive_mltf.models import registry
        from bhive_mltf.training.checkpointing import checkpoint, start_from
        from bhive_mltf.training.choices import check_compile_mode, check_loss

        plan = self.plan()
        model = registry.create(plan.model_name, plan.config, **plan.model_kwargs)
        # one that has begun goes on with weights of its own
        if plan.start_from and not (checkpoint.epoch_files(plan.directory) or checkpoint.step_files(plan.directory)):
            start_from.load(model, plan.model_name, Path(plan.start_from))
        check_loss(plan.loss_function, plan.model_name, model.regression)
        if plan.use_torch_compile:
            check_compile_mode(plan.torch_compile_mode, plan.model_name, model.padding)

    def refuse_contradictions(self) -> None:
        """ParameterError for parameters that exclude each other, or leave nothing to train."""
        if self.restart and self.resume_epoch:
            raise ParameterError(
                f"--restart True begins anew and --resume-epoch {self.resume_epoch} keeps epochs: give one of them"
            )
        if not self.slurm:
            refuse_nodes(self.nodes)
        version = self.val_dataset_version
        if version and version == self.dataset_version:
            raise ParameterError(
                f"--val-dataset-version and --dataset-version are both '{version}': leave the former out to split the "
                "training set, or give the validation set a version of its own"
            )
        if version and self.train_val_split != self.defaults(["train_val_split"])["train_val_split"]:
            raise ParameterError(
                f"--train-val-split {self.train_val_split} has no meaning with --val-dataset-version {version}, where "
                "all jets of the training set train: give one of them"
            )
        if self.val_filelist and not self.effective("val_dataset_version"):
            raise ParameterError(f"--val-filelist {self.val_filelist}: give the set a --val-dataset-version too")
        if self.epochs == 0 and not self.effective("use_iterations"):
            raise ParameterError(
                "--epochs 0 trains nothing: give 1 or more, or --use-iterations True with --total-iterations"
            )

    def run(self) -> None:
        self.launch_ranks()

    def is_left(self) -> bool:
        from bhive_mltf.training import launch

        launch.wait_for_ranks(Path(self.local_path()))
        return not self.complete()  # by a command that was waited for

    def resume_if_begun(self) -> None:
        """An unfinished training always goes on."""

    def prepare_run(self, status: Status = "RUNNING") -> None:
        if status == "RUNNING":
            self._prepared = self.prepare(status)
            return
        from bhive_mltf.slurm import job
        from bhive_mltf.training import launch

        directory = Path(self.local_path())
        launch.wait_for_ranks(directory)
        nodes, ranks = job.job_size(self.profile(), self.nodes, self.ranks_per_node)
        plan = self.prepare(status, nodes=nodes, ranks_per_node=ranks)
        self._prepared = plan.model_copy(update={"directory": directory.absolute()})
        self._prepared.write()

    def run_tracked(self, work: Work) -> None:
        # the engine owns the run, of one rank too
        self.run_in_ranks(work)

    def run_in_ranks(self, work: Work) -> None:
        from bhive_mltf.law.plot_after_job import draw

        super().run_in_ranks(work)
        draw(self._prepared)

    def launch_ranks(self) -> None:
        from bhive_mltf.training import launch

        launch.launch(self._prepared)

    def find_or_hand_in(self, profile: Profile, client: Slurm) -> JobRecord:
        """The job that trains, else a new one; SlurmError where one lives that the command would change."""
        from bhive_mltf.slurm import dispatch

        directory = Path(self.local_path())
        record = dispatch.living(directory)
        if record is None:
            return super().find_or_hand_in(profile, client)
        if self.asks_for_a_change():
            raise SlurmError(
                f"job {record.job_id} still trains in {directory}: end it with 'bhive-mltf slurm cancel "
                f"{record.job_id}' before the training is changed"
            )
        self.hold_against_record()
        return record

    def job_spec(self, profile: Profile) -> JobSpec:
        """What the job runs: the ranks, and once they are done the figures."""
        from bhive_mltf.training import launch

        afterwards = (profile.python, "-m", FIGURES, str(self.rank_file()))
        update = {"name": self.run_name(), "afterwards": afterwards, "staged": launch.sets_to_copy(self._prepared)}
        return super().job_spec(profile).model_copy(update=update)

    def rank_file(self) -> Path:
        """The plan."""
        return self._prepared.path

    def prepare(self, status: Status = "RUNNING", **values: int) -> TrainingPlan:
        """Carry out what the command changes, write the records, make the MLflow run; the plan to train.

        values : fields of the plan that whoever starts the ranks decides.
        """
        from bhive_mltf.law.plot_after_job import log_spectra
        from bhive_mltf.training import launch

        request = self.request()
        record, aside = launch.begin(request)
        if aside is not None:
            self.say(f"set aside: {aside}")
        plan = launch.settled(self.plan(), record, **values)
        dataset = launch.create_run(request, plan, status)
        if dataset is not None:
            log_spectra(plan, dataset)
        return plan

    def request(self) -> TrainingRequest:
        """What this command asks of the training, as the library takes it."""
        from bhive_mltf.training.launch import TrainingRequest

        asked = self.result_parameters()
        parameters = [name for name, parameter in self.get_params() if parameter.significant and name not in COMMANDS]
        return TrainingRequest(
            directory=Path(self.local_path()),
            asked=asked,
            defaults=self.defaults(asked),
            config_name=self.config,
            restart=self.restart,
            resume_epoch=self.resume_epoch,
            extend_training=self.extend_training,
            iterations=bool(self.effective("use_iterations")),
            data_path=os.environ["DATA_PATH"],
            task=self.task_family,
            run_name=self.run_name(),
            params={name: getattr(self, name) for name in parameters},
            dataset_version=self.dataset_version,
        )

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
            **{name: getattr(self, name) for name in fields - {"start_from"} if hasattr(self, name)},
            start_from=self.start_weights(),
        )

    def recorded(self, name: str) -> str:
        record = records.Record.read(self.local_path())
        return super().recorded(name) or (str(record.parameters.get(name, "")) if record is not None else "")

    def asks_for_a_change(self) -> bool:
        """True while this command still has to restart the training or take it back to an epoch."""
        if not (self.restart or self.resume_epoch > 0):
            return False
        from bhive_mltf.training.checkpointing.restart import is_carried_out

        return not is_carried_out(Path(self.local_path()))

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
        values = {name: getattr(self, name) for name in NOT_IN_THE_PATH}
        return {**values, "start_from": self.start_weights(), "config": config}

    def start_weights(self) -> str:
        """Absolute path of the checkpoint to begin with; empty without one."""
        return str(Path(self.start_from).expanduser().absolute()) if self.start_from else ""
