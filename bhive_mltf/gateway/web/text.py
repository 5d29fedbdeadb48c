"""What pages show of times, commands and logs."""

from __future__ import annotations

import codecs
import re
import shlex
import time
from typing import Final

from bhive_mltf.gateway.store.tables import Submission

# Control sequences of terminals (ECMA-48), then what else would not be seen or would turn the direction of the text.
_SEQUENCE: Final = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[PX^_][^\x1b]*\x1b\\|[ -/]*[0-~])"
)
_UNFINISHED: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b]*\x1b?|[ -/]*)?\Z")
_UNSEEN: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_LONGEST_SEQUENCE: Final = 4096


def plain(content: bytes, *, is_last: bool) -> tuple[str, int]:
    """A part of a log as plain text, and how many bytes of it that used.

    A character or control sequence that is cut at the end is left for the next part, unless this is the last.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(content, final=is_last)
    used = len(content) - len(decoder.getstate()[0])
    cut = None if is_last else _UNFINISHED.search(text, max(0, len(text) - _LONGEST_SEQUENCE))
    if cut is not None:
        used -= len(cut[0].encode())
        text = text[: cut.start()]
    text = _SEQUENCE.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return _UNSEEN.sub("", text), used


def moment(seconds: float | None) -> str:
    """A time in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds)) if seconds is not None else ""


def duration(seconds: float) -> str:
    """A time span in its two largest units."""
    minutes = int(max(seconds, 0)) // 60
    days, hours = minutes // 1440, minutes // 60 % 24
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


def command(job: Submission) -> str:
    """The command that hands the same in again, typed in the folder of the project."""
    options = {"profile": job.profile, "hours": f"{job.hours:g}", "entry-point": job.entry_point}
    options |= {"environment": job.environment}
    options |= {"name": job.name, "label": job.label, "nodes": str(job.nodes)}
    options |= {"ranks-per-node": str(job.ranks_per_node)}
    left_out = {"entry-point": "main", "nodes": "1", "ranks-per-node": "1"}
    # with `=`, a value that begins with a dash stays a value
    given = [f"--{name}={value}" for name, value in options.items() if value and value != left_out.get(name)]
    given += ["--resume"] if job.resume else []
    given += [f"--param={name}={value}" for name, value in job.params.items()]
    words = ["bhive-mltf-client", "submit", ".", *given]
    return shlex.join(words)
