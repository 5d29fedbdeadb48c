"""Upstream's wrapper tasks: one command for a model's whole chain."""

from __future__ import annotations

import law
import luigi

from bhive_mltf.law.parameters import TrainingDependency
from bhive_mltf.law.tasks.base import BaseTask
from bhive_mltf.law.tasks.plotting import ROCCurveTask
from bhive_mltf.law.tasks.working_point import WorkingPointTask


class _Run(law.WrapperTask, TrainingDependency, BaseTask):
    """ROC curves and working points of one model, trained for three epochs; `version` names everything."""

    version = luigi.Parameter(description="version of the training set and of the training")
    training_filelist = luigi.Parameter(description="list of ROOT files to train on")
    test_filelist = luigi.Parameter(description="list of ROOT files to evaluate on")

    epochs = luigi.IntParameter(default=3, description="passes over the training jets")
    model_name = luigi.Parameter(default="DeepJet", description="name in the model registry")

    exclude_index = True
    config_name = ""

    def requires(self) -> dict[str, law.Task]:
        common = {
            "config": self.config_name if self.config == "default" else self.config,
            "dataset_version": self.version,
            "filelist": self.training_filelist,
            "test_dataset_version": f"{self.version}_test",
            "test_filelist": self.test_filelist,
            "training_version": self.version,
        }
        return {"roc": ROCCurveTask.req(self, **common), "working_points": WorkingPointTask.req(self, **common)}


class DeepJetRun(_Run):
    """DeepJet on offline AK4 jets."""

    config_name = "offline_run3"


class DeepJetRunHLT(_Run):
    """DeepJet on HLT jets."""

    model_name = luigi.Parameter(default="DeepJetHLT", description="name in the model registry")
    config_name = "hlt_run3"


class DeepJetRunHLTPhase2(_Run):
    """DeepJet on jets of the Phase-2 trigger. Its config is upstream's own, and lies in `$B_HIVE_DIR/config`."""

    model_name = luigi.Parameter(default="DeepJetHLT", description="name in the model registry")
    config_name = "hlt_phase2"


class ParticleNetRunHLT(_Run):
    """ParticleNet on HLT jets."""

    model_name = luigi.Parameter(default="ParticleNet_InProHLT", description="name in the model registry")
    config_name = "hlt_run3"
