"""Remote files: read like any other, and a clear word when a package is missing."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from bhive_mltf.data.build.stage import stage
from bhive_mltf.data.ntuples.jobs import StageJob
from bhive_mltf.data.ntuples.root_reader import open_tree
from bhive_mltf.errors import DataError
from tests.helpers.building import small_config, write_hand_made


def test_an_address_gives_the_same_jets_as_a_path(tmp_path):
    config = small_config(tmp_path)
    path = write_hand_made(tmp_path / "TT.root", 300)
    chunks = []
    for place in (path, f"file://{path}"):
        with open_tree(place, config.treename, config.branches) as tree:
            chunks.append(list(tree.chunks(110)))
    assert len(chunks[0]) == len(chunks[1]) == 3
    for local, remote in zip(*chunks, strict=True):
        assert (local.start, local.stop) == (remote.start, remote.stop)
        for name, values in local.scalars.items():
            assert values.dtype == remote.scalars[name].dtype
            np.testing.assert_array_equal(values, remote.scalars[name])
        for name, lists in local.jagged.items():
            np.testing.assert_array_equal(lists.offsets, remote.jagged[name].offsets)
            np.testing.assert_array_equal(lists.values, remote.jagged[name].values)


def test_w01_addresses_are_staged_like_paths(tmp_path):
    config = small_config(tmp_path)
    path = write_hand_made(tmp_path / "TT.root", 30)
    record = stage(StageJob(config, (f"file://{path}",), tmp_path / "x.jets", 1))
    assert record.sources[0].path == f"file://{path}"
    assert record.accounting.accepted == 30


@pytest.mark.skipif(importlib.util.find_spec("fsspec_xrootd") is not None, reason="fsspec-xrootd is installed")
def test_w01_xrootd_without_its_package(tmp_path):
    config = small_config(tmp_path)
    job = StageJob(config, ("root://host.invalid//store/TT.root",), tmp_path / "x.jets", 1, skip_bad_files=True)
    message = "'root://host.invalid//store/TT.root' needs a package .*fsspec-xrootd.*pip install 'bhive_mltf.xrootd.'"
    with pytest.raises(DataError, match=message):
        stage(job)
    assert not Path(job.target).exists()
