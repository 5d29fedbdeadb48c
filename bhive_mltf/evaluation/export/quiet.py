"""Exports without the remarks of the libraries that write them."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_PROGRESS = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"
_TALKATIVE = ("mlflow", "onnx_ir", "onnxscript", "torch.export", "torch.onnx")


@contextmanager
def without_remarks() -> Iterator[None]:
    """Inside, exporters and MLflow say nothing below an error."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    before = os.environ.get(_PROGRESS)
    os.environ[_PROGRESS] = "false"
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if before is None:
            del os.environ[_PROGRESS]
        else:
            os.environ[_PROGRESS] = before
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
