"""How the tasks speak to a person: one sentence for an error, and a quiet `--print-status`."""

from __future__ import annotations

import functools
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import law
from luigi.cmdline_parser import CmdlineParser

from bhive_mltf.errors import BhiveError

logger = logging.getLogger("law.bhive_mltf")

SCHEDULING_ERROR = 50  # law's exit code for a task that could not be scheduled
INTERACTIVE = ("print_deps", "print_status", "print_output", "fetch_output", "remove_output")

_ERROR_LINE = re.compile(r"^bhive_mltf\.errors\.\w+: (?P<sentence>.*)\Z", re.MULTILINE | re.DOTALL)
_WORKER = re.compile(r"^\[pid \d+\] Worker Worker\([^)]*\) ")
_BOOKKEEPING = re.compile(
    r"^Informed scheduler that task|was stopped. Shutting down Keep-Alive|^Done scheduling|^Running Worker"
)
_looking = False
_running = False
_warned: set[str] = set()
_T = TypeVar("_T")


@contextmanager
def looking() -> Iterator[None]:
    """Within it the command only looks (`--print-status` and the like): nothing may raise."""
    global _looking  # noqa: PLW0603 - one command, one process
    before, _looking = _looking, True
    try:
        yield
    finally:
        _looking = before


def begin_running(_task: object) -> None:
    """From the first task that runs on, errors are luigi's to report."""
    global _running  # noqa: PLW0603 - one command, one process
    _running = True


def only_looking() -> bool:
    """True while an interactive parameter is being served."""
    return _looking


def refuse_early(empty: Callable[[], _T]) -> Callable[[Callable[..., _T]], Callable[..., _T]]:
    """Make a BhiveError in a scheduling method end the whole command, before anything runs.

    luigi would go on with all tasks that do not depend on the refused one. While the command only looks, the error is
    shown in one line and the value of `empty()` is returned.
    """

    def decorate(method: Callable[..., _T]) -> Callable[..., _T]:
        @functools.wraps(method)
        def wrapper(*args: Any, **kwargs: Any) -> _T:
            try:
                return method(*args, **kwargs)
            except BhiveError as error:
                if only_looking():
                    sys.stdout.write(f"{error}\n")
                    return empty()
                if CmdlineParser.get_instance() is None or _running:
                    raise
                law.util.abort(f"error: {error}", exitcode=SCHEDULING_ERROR)
                raise

        return wrapper

    return decorate


def warn_once(text: str) -> None:
    """Warn, once per command."""
    if text not in _warned:
        _warned.add(text)
        logger.warning(text)


class Brief(logging.Filter):
    """luigi's messages without its bookkeeping; a BhiveError as its sentence, other errors with their traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if record.levelno <= logging.INFO and _BOOKKEEPING.search(text):
            return False
        record.msg, record.args = _WORKER.sub("", text), ()
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, BhiveError):
            record.msg = f"{record.msg}\nerror: {error}"
            record.exc_info = record.exc_text = None
        elif "Traceback" in text and (match := _ERROR_LINE.search(text)) is not None:
            first = text.split("\n", 1)[0]
            record.msg = f"{first}\nerror: {match['sentence'].strip()}"
        return True


def install() -> None:
    """Install the filter where luigi and law report failed tasks."""
    luigi_logger = logging.getLogger("luigi-interface")
    if not any(isinstance(known, Brief) for known in luigi_logger.filters):
        luigi_logger.addFilter(Brief())
