"""What commit a2464a8 left behind, in the folder of a test."""

import re
import socket
import tarfile
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
TEXTS = ("plan.json", "run.json", ".lock")


@pytest.fixture(scope="module")
def expected():
    with np.load(HERE / "expected.npz") as file:
        return dict(file)


@pytest.fixture
def output(tmp_path):
    """`$DATA_PATH` of that commit, as if it had always been in this folder of this host."""
    with tarfile.open(HERE / "output.tar.xz") as archive:
        archive.extractall(tmp_path / "output", filter="data")
    for path in (tmp_path / "output").rglob("*"):
        if path.name in TEXTS:
            text = path.read_text().replace("/data/output", str(tmp_path / "output"))
            text = text.replace("/data/compat.yml", str(HERE / "compat.yml"))
            path.write_text(re.sub(r'"host": "\w+"', f'"host": "{socket.gethostname()}"', text))
    return tmp_path / "output"
