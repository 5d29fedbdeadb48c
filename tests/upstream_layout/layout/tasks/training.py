"""TrainingTask: model, loaders and optimiser; the loop itself is the model's."""

import os
from pathlib import Path

import law
import luigi
from tasks.base import BaseTask
from tasks.dataset import DatasetConstructorTask
from tasks.parameter_mixins import AttackDependency, DatasetDependency, TrainingDependency

law.contrib.load("numpy")


def latest_checkpoint(directory, epoch=None):
    """Path and number of epochs of the last model, or of that after `epoch` epochs."""
    done = {int(path.stem.removeprefix("model_")) + 1: path for path in Path(directory).glob("model_[0-9]*.pt")}
    epochs = epoch or max(done, default=0)
    return done.get(epochs), epochs if epochs in done else 0


class TrainingTask(AttackDependency, TrainingDependency, DatasetDependency, BaseTask):
    loss_weighting = luigi.BoolParameter(default=False)
    resume_training = luigi.BoolParameter(default=False)
    resume_epoch = luigi.IntParameter(default=False)
    extend_training = luigi.IntParameter(default=0)
    train_val_split = luigi.FloatParameter(default=0.85)
    n_train_files = luigi.IntParameter(default=-1)

    def requires(self):
        return DatasetConstructorTask.req(self)

    def output(self):
        return {
            "training_metrics": self.local_target("training_metrics.npz"),
            "validation_metrics": self.local_target("validation_metrics.npz"),
            "best_model": self.local_target("best_model.pt"),
        }

    def run(self):
        import json

        import numpy as np
        import torch
        from torch.utils.data import DataLoader
        from utils.models.models import BTaggingModels
        from utils.torch.DatasetLoader import DatasetLoader

        # there nothing seeds a training; here two of them are compared
        torch.manual_seed(self.seed)
        np.random.seed(self.seed)
        self.set_device()
        os.makedirs(self.local_path(), exist_ok=True)
        files = self.input()["file_list"].load().split("\n")
        n_train = max(1, int(len(files) * self.train_val_split))
        training_files, validation_files = files[:n_train], files[n_train:] or files

        config = json.loads(Path(os.environ["DATA_PATH"], "config.json").read_text())
        dtype = getattr(torch, self.training_precision)
        model = BTaggingModels(self.model_name, config).to(dtype)
        model = model.to(self.device)
        optimizer = torch.optim.AdamW(model.parameters(), self.learning_rate, betas=self.betas, eps=1e-6)

        dataset_class = DatasetLoader("LZ4Dataset")
        loaders = {}
        for part, part_files in (("training", training_files), ("validation", validation_files)):
            data = dataset_class(
                files=part_files,
                model=model,
                config=config,
                data_type=part,
                weighted_sampling=not self.loss_weighting,
                batch_size=self.batch_size,
            )
            loaders[part] = DataLoader(data, batch_size=None, num_workers=self.n_threads)

        ran_epochs, history = 0, {part: {"loss": [], "acc": []} for part in loaders}
        best_loss_val = float("inf")
        if self.resume_training or self.resume_epoch or self.extend_training:
            path, ran_epochs = latest_checkpoint(self.local_path(), self.resume_epoch)
            if path is not None:
                checkpoint = torch.load(path, map_location=self.device, weights_only=False)
                model.load_state_dict(checkpoint["model_state_dict"])
                optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
                for part in history:
                    metrics = self.output()[f"{part}_metrics"].load()
                    history[part] = {key: metrics[key].tolist() for key in ("loss", "acc")}
                best_loss_val = min(history["validation"]["loss"])
        model.train_model(
            loaders["training"],
            loaders["validation"],
            self.local_path(),
            torch.nn.CrossEntropyLoss(reduction="none"),
            optimizer=optimizer,
            device=self.device,
            nepochs=self.epochs + self.extend_training,
            resume_epochs=ran_epochs,
            best_loss_val=best_loss_val,
            train_metrics=history["training"],
            validation_metrics=history["validation"],
        )
