"""InputHistogrammerTask and HistogramPlotterTask: what the inputs of a training set look like, per truth label."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import law
import luigi

from bhive_mltf import compat
from bhive_mltf.law.mixins import SlurmMixin
from bhive_mltf.law.parameters import technical
from bhive_mltf.law.targets import DerivedFileTarget
from bhive_mltf.law.tasks.dataset import DatasetConstructorTask, DatasetTask

if TYPE_CHECKING:
    from bhive_mltf.evaluation.inputs.features import InputFeature
    from bhive_mltf.evaluation.inputs.results import InputsRequest


DEFAULT_BINS = 50


class InputHistogrammerTask(SlurmMixin, DatasetTask):
    """Histograms of all input features, with one binning per feature for all files."""

    Nbins = luigi.IntParameter(
        default=DEFAULT_BINS, description="bins of a histogram, without underflow and overflow; own path part unless 50"
    )
    n_workers = technical(luigi.IntParameter, default=-1, description="processes; -1: one per core but one")
    weight_histo = luigi.BoolParameter(default=False, description="count each jet with its weight")

    def store_parts(self) -> tuple[str, ...]:
        parts = super().store_parts()
        return parts if self.Nbins == DEFAULT_BINS else (*parts, f"Nbins_{self.Nbins}")

    def requires(self) -> law.Task | list[law.Task]:
        return [] if self.is_refused() else self.dataset()

    def output(self) -> Any:
        return self.derived("input_histogram_weight.npz" if self.weight_histo else "input_histogram.npz")

    def run(self) -> None:
        from bhive_mltf.evaluation.inputs import results

        path = self.output().path
        number, n_jets = results.fill(self.request(), Path(self.dataset().local_path()), self.load_config(), Path(path))
        self.say(f"{number} histograms of {n_jets} jets: {path}")

    def request(self) -> InputsRequest:
        """What is filled or drawn, as the library takes it."""
        from bhive_mltf.evaluation.inputs.results import InputsRequest

        return InputsRequest(
            Path(self.local_path()), self.sources(), self.Nbins, self.n_workers, weighted=self.weight_histo
        )

    def job_directory(self) -> Path:
        # results with and without weights, logarithmic or not, share a directory
        weighted, log = (getattr(self, name, False) for name in ("weight_histo", "ylog"))
        return Path(self.local_path("jobs", f"weights_{weighted}_ylog_{log}"))

    def check(self) -> None:
        from bhive_mltf.evaluation.inputs.features import check_parameters

        check_parameters(self.Nbins, self.n_workers)

    def dataset(self) -> DatasetConstructorTask:
        """The training set that is looked at."""
        return DatasetConstructorTask.req(self)

    def sources(self) -> dict[str, str]:
        """Directories of what the results are made from."""
        return {"dataset": self.dataset().local_path()}

    def derived(self, name: str) -> DerivedFileTarget:
        """A file of this task, out of date once one of its sources is made anew."""
        return DerivedFileTarget(self.local_path(name), record=self.local_path(), sources=self.sources())


class HistogramPlotterTask(InputHistogrammerTask):
    """Figures of the histograms: one per feature and truth label, and one per feature with all labels."""

    ylog = luigi.BoolParameter(default=True, description="logarithmic counts")

    def check_to_run(self) -> None:
        compat.require(self.task_family, "evaluation", "matplotlib")

    def requires(self) -> law.Task | list[law.Task]:
        return [] if self.is_refused() else self.histograms()

    def output(self) -> dict[str, DerivedFileTarget]:
        from bhive_mltf.evaluation.inputs.features import figure_names

        names = figure_names(self.features(), self.load_config().labels, ylog=self.ylog, weighted=self.weight_histo)
        return {key: self.derived(name) for key, name in names.items()}

    def run(self) -> None:
        from bhive_mltf.evaluation.inputs import results

        path = Path(self.histograms().output().path)
        results.draw(self.request(), path, self.features(), self.load_config().labels, ylog=self.ylog)
        self.say(f"{len(self.output())} figures; those of all labels together: {self.local_path()}/<feature>/all*.png")

    def sources(self) -> dict[str, str]:
        return {**super().sources(), "histograms": self.histograms().local_path()}

    def histograms(self) -> InputHistogrammerTask:
        """The task that fills what is drawn."""
        return InputHistogrammerTask.req(self)

    def features(self) -> tuple[InputFeature, ...]:
        """All input features of the config."""
        from bhive_mltf.evaluation.inputs.features import features

        return features(self.load_config().groups)
