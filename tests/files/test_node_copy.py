"""Copies of folders on a node's own disk: whole or not there."""

import shutil

import pytest

from bhive_mltf.files import node_copy


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "set 1"
    (folder / "jobs").mkdir(parents=True)
    (folder / "file_0.arrow").write_bytes(bytes(range(256)) * 100)
    (folder / "manifest.json").write_text("{}")
    (folder / ".lock").touch()
    return folder


def test_a_copy_is_found_where_the_job_says(source, tmp_path, monkeypatch):
    assert node_copy.make(source, tmp_path / "n1") == 25_602
    assert node_copy.find(source) == source
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    monkeypatch.setenv(node_copy.VARIABLE, f"{tmp_path}/$SLURMD_NODENAME")
    copy = node_copy.find(source)
    assert copy.parent == tmp_path / "n1"
    assert sorted(path.name for path in copy.iterdir()) == ["file_0.arrow", "manifest.json"]
    assert (copy / "file_0.arrow").read_bytes() == (source / "file_0.arrow").read_bytes()
    monkeypatch.setenv("SLURMD_NODENAME", "n2")
    assert node_copy.find(source) == source


def test_a_copy_that_differs_or_does_not_fit_is_none(source, tmp_path, monkeypatch):
    monkeypatch.setenv(node_copy.VARIABLE, str(tmp_path / "n1"))
    pieces = node_copy._pieces
    with monkeypatch.context() as patch:
        patch.setattr(node_copy, "_pieces", lambda path: pieces(path) if path.parent == source else iter([b"x"]))
        with pytest.raises(OSError, match=r"file_0.arrow is not what was read from .*set 1/file_0.arrow"):
            node_copy.make(source, tmp_path / "n1")
    assert node_copy.find(source) == source
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 1))
        with pytest.raises(OSError, match=r"0.00 GB do not fit into .*n1, which has 0.00 GB left"):
            node_copy.make(source, tmp_path / "n1")
    assert node_copy.find(source) == source
    node_copy.make(source, tmp_path / "n1")
    assert node_copy.find(source) != source
