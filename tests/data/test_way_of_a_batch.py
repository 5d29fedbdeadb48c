"""The way of a batch from the loader to the model's output is short: few files to read to know it."""

import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

import bhive_mltf
from bhive_mltf import config as configs
from bhive_mltf.data.loader import order
from bhive_mltf.data.loader.loader import BatchLoader
from bhive_mltf.models import registry
from bhive_mltf.testing.jets import write_btag
from tests.helpers.building import build

PACKAGE = Path(bhive_mltf.__file__).parent
MOST_FILES, MOST_FILES_OF_A_NEW_WINDOW = 10, 16


def files_with_frames(function):
    """Files of the package of which `function` runs anything."""
    found = set()

    def note(frame, event, _):
        path = Path(frame.f_code.co_filename)
        if event == "call" and PACKAGE in path.parents:
            found.add(str(path.relative_to(PACKAGE)))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
    return found


@pytest.fixture(scope="module", autouse=True)
def _small_blocks():
    with patch.object(order, "BLOCK", 16):
        yield


@pytest.fixture(scope="module")
def touched(tmp_path_factory):
    """Files that each batch of a second epoch touches, eagerly and without workers."""
    folder = tmp_path_factory.mktemp("jets")
    config = configs.load("offline_run3")
    files = [str(write_btag(folder / f"{name}.root", 300, seed, name)) for seed, name in enumerate(("TT", "QCD"))]
    dataset = build(config, files, folder / "set")
    model = registry.create("DeepJet", config)
    options = {"mode": "training", "batch_size": 40, "seed": 1, "weighted": False, "unmatched": "drop"}
    loader = BatchLoader(dataset, range(len(dataset)), model.inputs, **options)
    for batch in loader.epoch(0):
        assert torch.isfinite(model(batch)).all()
    batches = loader.epoch(1)
    return [files_with_frames(lambda: model(next(batches))) for _ in range(loader.n_batches(1))]


def opens_a_window(files):
    return "data/loader/windows.py" in files


def test_one_batch_touches_at_most_ten_files(touched):
    within = [files for files in touched if not opens_a_window(files)]
    assert len(within) > 1
    for files in within:
        assert {"data/loader/loader.py", "data/loader/collate.py", "models/deepjet.py"} <= files
        assert len(files) <= MOST_FILES, sorted(files)


def test_batch_that_opens_a_window_touches_few_more(touched):
    opening = [files for files in touched if opens_a_window(files)]
    assert len(opening) > 1
    for files in opening:
        assert "data/loader/order.py" in files
        assert len(files) <= MOST_FILES_OF_A_NEW_WINDOW, sorted(files)
