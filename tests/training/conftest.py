import os

import pytest
import torch

from bhive_mltf.ranks.distributed import TIMEOUT_VARIABLE
from bhive_mltf.ranks.process import LAUNCHER_VARIABLE
from tests.helpers.standin import REPOSITORY


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch):
    """Ranks start in the repository, where `-m tests.helpers.standin` works; nothing leaks between tests."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    haunted = [name for name in os.environ if name.startswith("STANDIN_")]
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", LAUNCHER_VARIABLE, TIMEOUT_VARIABLE, *haunted):
        monkeypatch.delenv(name, raising=False)
    state = torch.random.get_rng_state()
    yield
    torch.random.set_rng_state(state)
