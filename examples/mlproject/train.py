"""Logistic regression between two Gaussian distributions: the smallest project with a metric per epoch."""

import argparse
import time

import mlflow
import numpy as np


def main() -> None:
    """Train; `MLFLOW_RUN_ID` and `MLFLOW_TRACKING_URI` come from whoever starts this."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--pause", type=float, default=0, help="seconds between epochs")
    parser.add_argument("--crash", action="store_true", help="end with an error before the first epoch")
    options = parser.parse_args()
    if options.crash:
        raise SystemExit("this entry point ends with an error")

    random = np.random.default_rng(1)
    labels = random.integers(0, 2, 2000)
    points = random.normal(size=(2000, 2)) + 1.5 * labels[:, None]
    weights, offset = np.zeros(2), 0.0
    with mlflow.start_run():
        for epoch in range(int(options.epochs)):
            odds = 1 / (1 + np.exp(-(points @ weights + offset)))
            loss = float(-np.mean(np.log(np.where(labels == 1, odds, 1 - odds))))
            accuracy = float(np.mean((odds > 0.5) == labels))
            error = (odds - labels) / len(labels)
            weights, offset = weights - options.rate * points.T @ error, offset - options.rate * error.sum()
            mlflow.log_metrics({"loss": loss, "accuracy": accuracy}, step=epoch)
            print(f"epoch {epoch}: loss {loss:.4f}, accuracy {accuracy:.3f}", flush=True)  # noqa: T201
            time.sleep(options.pause)
        mlflow.log_dict({"weights": weights.tolist(), "offset": float(offset)}, "model.json")


if __name__ == "__main__":
    main()
