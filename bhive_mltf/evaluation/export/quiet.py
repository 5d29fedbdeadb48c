"""Exports without the remarks of the libraries that write them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_TALKATIVE = ("mlflow", "onnx_ir", "onnxscript", "torch.export", "torch.onnx")


@contextmanager
def without_remarks() -> Iterator[None]:
    """Inside, exporters and MLflow say nothing below an error."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
