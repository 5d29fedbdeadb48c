"""Names that a plan may carry; no torch here, so that a task can check its parameters at once."""

from __future__ import annotations

from collections.abc import Sequence

from bhive_mltf.errors import ParameterError

OPTIMIZERS = (
    "ASGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "LBFGS",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Ranger",
    "Rprop",
    "SGD",
)
WITHOUT_WEIGHT_DECAY = ("LBFGS", "Rprop")
SCHEDULES = ("epoch_lin_decay", "batch_lin_decay", "batch_cosine_warmup", "batch_exp_decay")
LOG_COSH = -1.0
# What the losses of multi-task models do with each regression output: log-cosh, or the loss of a quantile.
REGRESSION_LOSSES: dict[str, tuple[float, ...]] = {
    "CrossEntropyLogCosh": (LOG_COSH, 0.16, 0.84, LOG_COSH),
    "CrossEntropyLogCoshHLT": (LOG_COSH,),
}
LOSSES = ("CrossEntropyLoss", *REGRESSION_LOSSES)
PRECISIONS = ("float32", "float16", "float64", "tf32", "bf16", "fp16")
UNMATCHED = ("error", "drop", "first")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
GRAPH_MODES = ("reduce-overhead", "max-autotune")  # with CUDA graphs


def check_compile_mode(mode: str, model: str, padding: str) -> None:
    """ParameterError for a mode that records graphs of the GPU, with a model whose batches differ in shape."""
    if padding == "longest" and mode in GRAPH_MODES:
        fitting = " or ".join(f"'{name}'" for name in COMPILE_MODES if name not in GRAPH_MODES)
        raise ParameterError(
            f"torch_compile_mode is '{mode}', which records a graph of the GPU for each shape, but each batch of "
            f"{model} has a shape of its own: take {fitting}"
        )


def check_loss(loss: str, model: str, outputs: Sequence[str]) -> None:
    """ParameterError unless the loss fits a model with these regression outputs (none: a plain model)."""
    wanted = [name for name in LOSSES if len(REGRESSION_LOSSES.get(name, ())) == len(outputs)]
    if loss in wanted:
        return
    if not outputs:
        msg = f"--loss-function {loss} fits regression outputs too, which model {model} does not have"
    elif wanted:
        msg = f"--loss-function {loss} does not fit the regression outputs of model {model} ({', '.join(outputs)})"
    else:
        fitted = ", ".join(f"{name} fits {len(levels)}" for name, levels in REGRESSION_LOSSES.items())
        raise ParameterError(
            f"no --loss-function fits the {len(outputs)} regression outputs of model {model} ({', '.join(outputs)}): "
            f"{fitted}"
        )
    raise ParameterError(f"{msg}: take --loss-function {' or '.join(wanted)}")
