"""Text files that people write, with whatever editor."""

from __future__ import annotations

import codecs
from pathlib import Path


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with its byte order mark; without any such mark.

    Raises
    ------
    OSError : the file cannot be read.
    UnicodeDecodeError : it is not text.
    """
    content = Path(path).read_bytes()
    is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    # files that were joined have the mark inside too
    return content.decode("utf-16" if is_wide else "utf-8").replace("\ufeff", "")
