"""Parameters by what they are about, each with its parts of the path."""

import law
import luigi


class DatasetDependency:
    dataset_version = luigi.Parameter(default="dataset_version_01")
    filelist = luigi.Parameter(default="", significant=False)
    training_precision = luigi.Parameter(default="float32")

    def store_parts(self):
        return (*super().store_parts(), self.dataset_version)


class TrainingDependency:
    training_version = luigi.Parameter(default="training_version_01")
    epochs = luigi.IntParameter(default=1)
    model_name = luigi.Parameter()
    n_threads = luigi.IntParameter(default=4)
    batch_size = luigi.IntParameter(default=1024)
    learning_rate = luigi.FloatParameter(default=1e-3)
    betas = law.CSVParameter(cls=luigi.FloatParameter, default=(0.95, 0.999))
    mixed_precision = luigi.BoolParameter(default=False)

    def store_parts(self):
        return (*super().store_parts(), self.training_version, self.model_name, f"epochs_{self.epochs}")

    def set_device(self):
        import torch

        self.device = "cuda" if torch.cuda.is_available() else "cpu"


class AttackDependency:
    attack = luigi.Parameter(default="nominal")
    attack_magnitude = luigi.FloatParameter(default=0.0)

    def store_parts(self):
        return (*super().store_parts(), self.attack)
