"""The base of all models, with the loop that trains them."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn


def haunt(epoch):
    """Let a rank fail, stop or be killed after an epoch, once, where a test wrote a file `ghost`: `how,rank,epoch`."""
    ghost = Path(os.environ["DATA_PATH"], "ghost")
    how, rank, when = ghost.read_text().split(",") if ghost.exists() else ("none", "0", "0")
    mark = ghost.with_name("ghost_was_here")
    if how == "none" or (os.environ.get("RANK", "0"), str(epoch)) != (rank, when) or mark.exists():
        return
    mark.write_text(str(os.getpid()))
    if how != "raise":
        os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)
    raise RuntimeError(f"a ghost in epoch {epoch}")


class Classifier_base(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        sizes = (("global_features", 1), ("cpf_candidates", config["n_cpf_candidates"]))
        self.input_dims = [(count, len(config[name])) for name, count in sizes]

    def get_inpt(self, x, truth=None):
        widths = [count * features for count, features in self.input_dims]
        parts = x[:, : sum(widths)].split(widths, dim=1)
        return [part.reshape(len(x), *dims) for part, dims in zip(parts, self.input_dims, strict=True)], truth

    def step(self, inpt, truth, loss_fn):
        pred = self.forward(inpt)
        return pred, loss_fn(pred, truth).mean()

    def train_model(
        self, training_data, validation_data, directory, loss_fn, optimizer=None, device="cpu", nepochs=0,
        resume_epochs=0, best_loss_val=np.inf, train_metrics=None, validation_metrics=None, **kwargs,
    ):  # fmt: skip
        for t in range(resume_epochs, nepochs):
            training_data.dataset.shuffleFileList()
            loss_training, acc_training, _ = self.update(training_data, loss_fn, optimizer, device=device)
            loss_validation, acc_validation, _ = self.validate_model(validation_data, loss_fn, device=device)
            for history, values in (
                (train_metrics, (loss_training, acc_training)),
                (validation_metrics, (loss_validation, acc_validation)),
            ):
                for key, value in zip(("loss", "acc"), values, strict=True):
                    history[key].append(value)
            checkpoint = {
                "epoch": t,
                "model_state_dict": self.state_dict(),
                "optimizer_state_dict": optimizer.state_dict(),
                "loss_train": loss_training,
                "loss_val": loss_validation,
            }
            torch.save(checkpoint, f"{directory}/model_{t}.pt")
            if loss_validation < best_loss_val:
                best_loss_val = loss_validation
                torch.save(checkpoint, f"{directory}/best_model.pt")
            np.savez(f"{directory}/training_metrics", **train_metrics)
            np.savez(f"{directory}/validation_metrics", **validation_metrics)
            haunt(t)
        return train_metrics, validation_metrics

    def update(self, dataloader, loss_fn, optimizer, device="cpu"):
        began, losses, accuracy = time.perf_counter(), 0.0, 0.0
        self.train()
        for b, (x, truth, _, _) in enumerate(dataloader):
            inpt, truth = self.get_inpt(x.to(next(self.parameters()).dtype).to(device), truth.long().to(device))
            pred, loss = self.step(inpt, truth, loss_fn)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses += loss.item()
            accuracy += (pred.argmax(1) == truth).double().mean().item()
        losses, accuracy = losses / (b + 1), accuracy / (b + 1)
        return losses, accuracy, time.perf_counter() - began

    def validate_model(self, dataloader, loss_fn, device="cpu"):
        began, losses, accuracy, n = time.perf_counter(), 0.0, 0.0, 0
        self.eval()
        with torch.no_grad():
            for x, truth, _, _ in dataloader:
                inpt, truth = self.get_inpt(x.to(next(self.parameters()).dtype).to(device), truth.long().to(device))
                pred, loss = self.step(inpt, truth, loss_fn)
                losses += loss.item() * len(pred)
                accuracy += (pred.argmax(1) == truth).sum().item()
                n += len(pred)
        losses, accuracy = losses / n, accuracy / n
        return losses, accuracy, time.perf_counter() - began
