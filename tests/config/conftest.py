"""A small valid config, and configs made from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml

BASE: dict[str, Any] = {
    "treename": "tree",
    "bins_pt": [10, 50, 100],
    "bins_eta": [-2.5, 0, 2.5],
    "processes": ["TT", "QCD"],
    "truths": ["isB", "isC", "isUDSG"],
    "reference_flavour": "isB",
    "global_features": ["jet_pt", "jet_eta"],
    "n_cpf_candidates": 3,
    "cpf_candidates": ["can_pt", "can_eta", "can_ptrel"],
}


class Write(Protocol):
    def __call__(self, content: dict[str, Any] | str, name: str = "mine.yml") -> str: ...


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a config file, return its path."""

    def write(content: dict[str, Any] | str, name: str = "mine.yml") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
        return str(path)

    return write


@pytest.fixture
def base() -> dict[str, Any]:
    """A copy of the small config."""
    return {key: list(value) if isinstance(value, list) else value for key, value in BASE.items()}
