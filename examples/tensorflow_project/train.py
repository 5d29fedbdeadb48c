"""A Keras tagger on simulated jets: a project of another framework, which goes on after a time limit.

    bhive-mltf-client submit examples/tensorflow_project --profile PROFILE --resume
    python train.py --epochs 3                               # the same without a gateway

A training that was interrupted ends with the same weights as one that was not.
"""

import argparse
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

SAVED = 75  # the exit code that asks to be started again
FOLDER = Path(os.environ.get("MLTF_CHECKPOINT_DIR", "ckpt"))
FLAVOURS, TRACKS = ("light", "c", "b"), 12
TRACKED = "MLFLOW_TRACKING_URI" in os.environ
if TRACKED:
    import mlflow
    from mlflow.types import Schema, TensorSpec


def simulated(jets: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tracks of jets, shape (jets, TRACKS, 4), and the flavour of each jet, an index into `FLAVOURS`.

    Of a track: log of its share of the jet's momentum, distances to the axis in eta and phi, and the significance of
    its impact parameter, which the decay of a heavy hadron makes large for one track in eight (c) or in four (b).
    """
    random = np.random.default_rng(seed)
    flavours = random.integers(0, len(FLAVOURS), jets)
    shares = random.dirichlet(np.full(TRACKS, 0.7), jets)
    distances = random.normal(0, 0.1, (jets, TRACKS, 2)) / (1 + 5 * shares[..., None])
    displaced = random.random((jets, TRACKS)) < flavours[:, None] / 8
    significance = random.normal(0, 1, (jets, TRACKS)) + displaced * random.exponential(4, (jets, TRACKS))
    tracks = np.concatenate([np.log(shares + 1e-4)[..., None], distances, significance[..., None]], axis=-1)
    return tracks.astype(np.float32), flavours


def tagger(rate: float) -> keras.Model:
    """A network for each track, the mean over tracks, and a network for the jet (Deep Sets, arXiv:1703.06114)."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    of_track = [layers.Dense(64, "relu"), layers.Dense(64, "relu")]
    of_jet = [layers.Dense(64, "relu"), layers.Dense(len(FLAVOURS), "softmax")]
    model = keras.Sequential([keras.Input((TRACKS, 4)), *of_track, layers.GlobalAveragePooling1D(), *of_jet])
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def save(path: Path, model: keras.Model) -> None:
    """Write weights and state of the optimizer, whose steps say how far it is, as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name("next.keras")
    model.save(temporary)
    temporary.replace(path)


def train(options: argparse.Namespace, warned: list[int]) -> int:
    """Train from the last checkpoint on; the exit code."""
    epochs, batch_size, path = int(options.epochs), int(options.batch_size), FOLDER / "last.keras"
    (jets, flavours), held_out = simulated(16_384, seed=1), simulated(4_096, seed=2)
    model = keras.models.load_model(path) if path.exists() else tagger(float(options.rate))
    if TRACKED:
        # as they were written: those that were handed in are recorded already, and only the same text may be again
        mlflow.log_params({**vars(options), "jets": len(jets), "weights": model.count_params()})
    steps = -(-len(jets) // batch_size)
    for epoch in range(int(model.optimizer.iterations) // steps, epochs):
        # an order that depends on the epoch alone, not on where the training began
        order = np.random.default_rng(epoch).permutation(len(jets))
        given = {"batch_size": batch_size, "shuffle": False, "verbose": 0, "validation_data": held_out}
        found = model.fit(jets[order], flavours[order], **given).history
        report(epoch, {name: float(values[0]) for name, values in found.items()})
        save(path, model)
        time.sleep(float(options.pause))
        if warned and epoch + 1 < epochs:
            return SAVED
    if TRACKED:
        tracks, scores = TensorSpec(np.dtype("float32"), (-1, TRACKS, 4)), TensorSpec(np.dtype("float32"), (-1, 3))
        signature = mlflow.models.ModelSignature(Schema([tracks]), Schema([scores]))
        needs = [f"tensorflow-cpu=={tf.__version__}", f"keras=={keras.__version__}"]
        mlflow.keras.log_model(model, name="tagger", signature=signature, pip_requirements=needs)
    return 0


def report(epoch: int, values: dict[str, float]) -> None:
    """Tell log and, where there is one, tracking server."""
    print(f"epoch {epoch}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()), flush=True)  # noqa: T201
    if TRACKED:
        mlflow.log_metrics(values, step=epoch)


def main() -> int:
    """Train in the run of the job, which `MLFLOW_RUN_ID` names; the exit code."""
    parser = argparse.ArgumentParser(description="A tagger of simulated jets.")
    parser.add_argument("--epochs", default="5")
    parser.add_argument("--rate", default="0.003")
    parser.add_argument("--batch-size", default="256")
    parser.add_argument("--pause", default="0", help="seconds after each epoch")
    options = parser.parse_args()
    # a handler only notes the warning, which comes more than once; until now it was ignored, as the gateway starts it
    warned: list[int] = []
    signal.signal(signal.SIGUSR2, lambda number, _: warned.append(number))
    tf.config.experimental.enable_op_determinism()
    with mlflow.start_run() if TRACKED else contextlib.nullcontext():
        return train(options, warned)


if __name__ == "__main__":
    sys.exit(main())
