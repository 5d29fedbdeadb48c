"""Names that a plan may carry; no torch here, so that a task can check its parameters at once."""

from __future__ import annotations

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
LOSSES = ("CrossEntropyLoss",)
PRECISIONS = ("float32", "float16", "float64")
UNMATCHED = ("error", "drop", "first")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
