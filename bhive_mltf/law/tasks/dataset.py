"""ConvertNtuples and DatasetConstructorTask: from ROOT files to a training set."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import law
import luigi
from law.task.proxy import ProxyTask

from bhive_mltf import compat
from bhive_mltf.errors import BhiveError, FilelistError, ParameterError
from bhive_mltf.files.records import Record
from bhive_mltf.law import messages
from bhive_mltf.law.local_workflow import PooledLocalWorkflow
from bhive_mltf.law.mixins import SlurmMixin
from bhive_mltf.law.parameters import DatasetDependency, technical
from bhive_mltf.law.tasks import checks
from bhive_mltf.law.tasks.base import BaseTask
from bhive_mltf.law.workflow import SlurmWorkflow

if TYPE_CHECKING:
    from bhive_mltf.data.build.from_root import BuildRequest
    from bhive_mltf.data.ntuples.jobs import StageJob
    from bhive_mltf.slurm.profiles import Profile


class DatasetTask(DatasetDependency, BaseTask):
    """A task that knows its training set."""

    exclude_index = True

    def recorded(self, name: str) -> str:
        dataset = DatasetConstructorTask.req(self)
        record = Record.read(dataset.local_path()) if dataset.is_made() else None
        return str(record.parameters.get(name, "")) if record else ""


class ConvertNtuples(PooledLocalWorkflow, SlurmWorkflow, DatasetTask):
    """Accepted jets of each group of ROOT files, staged for the construction of a training set."""

    files_per_branch = technical(luigi.IntParameter, default=1, description="ROOT files that one branch converts")
    coffea_worker = technical(luigi.IntParameter, default=1, description="processes; 0: one per core")

    conversion_memory = technical(luigi.IntParameter, default=1024, description="MB of memory per converting process")

    def check(self) -> None:
        if self.files_per_branch < 1:
            raise ParameterError(f"--files-per-branch {self.files_per_branch}: a branch converts one file or more")

    def create_branch_map(self) -> dict[int, tuple[str, ...]]:
        try:
            self.check()
            self.load_config()
            files = self.input_files()
        except BhiveError as error:
            messages.show_once(str(error))
            return {}
        step = self.files_per_branch
        return {number: files[start : start + step] for number, start in enumerate(range(0, len(files), step))}

    def workflow_complete(self) -> Any:
        if self.is_needless():
            return True
        self.load_config()
        self.input_files()  # an empty list is refused, and not done
        # another command may make the set, and remove the staged files, between the two looks
        return ProxyTask.complete(self.workflow_proxy) or self.is_needless()

    def input_files(self) -> tuple[str, ...]:
        """The files of the list; in debug mode the first of each process."""
        if not self.filelist:
            raise FilelistError("no list of input files: give --filelist a text file with one ROOT file per line")
        files = checks.read(self.filelist)
        if not self.debug:
            return files
        from bhive_mltf.data.ntuples.filelist import one_file_per_process

        return one_file_per_process(files, self.load_config().processes)

    def output(self) -> law.LocalFileTarget:
        from bhive_mltf.data.ntuples.jobs import staged_name

        options = {"debug": self.debug, "skip_bad_files": self.skip_bad_files}
        return self.local_target(staged_name(self.load_config(), self.branch_data, self.seed, **options))

    def job(self) -> StageJob:
        """What the library converts for this branch."""
        from bhive_mltf.data.ntuples.jobs import ReadOptions, StageJob

        options = ReadOptions.for_debugging() if self.debug else ReadOptions()
        return StageJob(
            self.load_config(),
            self.branch_data,
            Path(self.output().path),
            self.seed,
            self.skip_bad_files,
            dataclasses.replace(options, memory_mb=self.conversion_memory),
        )

    def is_needless(self) -> bool:
        """The training set is made already."""
        return DatasetConstructorTask.req(self).is_made()

    def run(self) -> None:
        from bhive_mltf.data.build.stage import stage

        stage(self.job())

    def run_branches(self, branches: list[ConvertNtuples]) -> None:
        """Convert unfinished branches, each in a process of its own."""
        from bhive_mltf.data.build.stage import stage_many

        stage_many([branch.job() for branch in branches], workers=self.coffea_worker or os.cpu_count() or 1)

    def slurm_job_name(self, branches: Sequence[int]) -> str:
        return f"{self.task_family} {self.dataset_version} {branches[0]}"

    def slurm_branch_parameters(self, profile: Profile, branches: Sequence[int]) -> dict[str, Any]:
        # with the CPUs that a job has
        return {"coffea_worker": max(self.coffea_worker, min(profile.cpus(), len(branches)))}


class DatasetConstructorTask(SlurmMixin, DatasetTask):
    """The training set: shards in a global random order, weights, manifest."""

    coffea_worker = technical(luigi.IntParameter, default=1, description="processes that convert; 0: one per core")
    conversion_memory = technical(luigi.IntParameter, default=1024, description="MB of memory per converting process")
    chunk_size = luigi.IntParameter(default=100000, description="jets per shard")
    is_test_set = technical(
        luigi.BoolParameter,
        default=False,
        description="the jets are only evaluated: they may lack the reference flavour, or all labels but one",
    )

    def requires(self) -> dict[str, law.Task]:
        return {} if self.is_made() else {"staged": ConvertNtuples.req(self)}

    def output(self) -> dict[str, law.LocalFileTarget]:
        return {
            "file_list": self.local_target("processed_files.txt"),
            "histogram": self.local_target("histogram.npy"),
            "weights": self.local_target("weights.json"),
        }

    def is_made(self) -> bool:
        """All files are there."""
        return bool(super().complete())

    def complete(self) -> bool:
        if not self.is_made():
            return False
        if self.filelist:
            checks.refuse_other_files(ConvertNtuples.req(self).input_files, self.filelist, self.local_path())
        self.hold_against_record()
        return True

    def check_to_run(self) -> None:
        from bhive_mltf.config import require_complete
        from bhive_mltf.data.build.construct import check_parameters
        from bhive_mltf.data.ntuples.jobs import check_memory

        check_memory(self.conversion_memory)
        config = self.load_config()
        require_complete(config)
        check_parameters(config, self.chunk_size)

    def run(self) -> None:
        from bhive_mltf.data.build.from_root import build
        from bhive_mltf.data.weighting.report import WeightingReport

        manifest = build(self.request())
        if manifest is None:
            return
        directory = Path(self.local_path())
        self.say(f"{WeightingReport.read(directory)[0].table()}\n")
        if compat.has("matplotlib"):
            from bhive_mltf.evaluation.spectra import draw_spectra

            draw_spectra(directory)
        self.say(
            f"{self.dataset_version}: {manifest.accounting} -> {manifest.n_jets} jets in {len(manifest.shards)} shards"
        )

    def request(self) -> BuildRequest:
        """The set to make, as the library takes it."""
        from bhive_mltf.data.build.from_root import BuildRequest

        conversion, config = ConvertNtuples.req(self), self.load_config()
        recorded = ("chunk_size", "reference_flavour", "seed", "skip_bad_files", "weighting")
        return BuildRequest(
            directory=Path(self.local_path()),
            config=config,
            filelist=conversion.input_files(),
            jobs=[branch.job() for branch in conversion.get_branch_tasks().values()],
            parameters={**{name: getattr(self, name) for name in recorded}, "config": config.dataset_digest},
            outputs=tuple(Path(target.path).name for target in self.output().values()),
            chunk_size=self.chunk_size,
            seed=self.seed,
            weighting=self.weighting,
            is_test_set=self.is_test_set,
            memory_mb=self.conversion_memory,
            workers=self.coffea_worker or os.cpu_count() or 1,
        )

    def result_parameters(self) -> dict[str, Any]:
        # a training with another seed may use the same set
        names = ("chunk_size", "reference_flavour", "weighting", *(("seed",) if self.is_root_task() else ()))
        return {**{name: getattr(self, name) for name in names}, "config": self.load_config().dataset_digest}
