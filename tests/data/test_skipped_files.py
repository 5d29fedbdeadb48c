"""Files that --skip-bad-files leaves out, and those that it never does."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import uproot
import uproot.source.object

from bhive_mltf.data.build import staged_file
from bhive_mltf.errors import CorruptFileError, DataError, MissingTreeError
from tests.helpers.building import build, small_config, write_hand_made

FILES = Path(__file__).parent / "files"


@pytest.fixture
def config(tmp_path):
    return small_config(tmp_path)


def without_tree(path):
    with uproot.recreate(path) as file:
        file.mkdir("deepntuplizer")
    return str(path)


def unclosed(path, name="killed"):
    shutil.copy(FILES / f"{name}.root", path)
    return str(path)


@pytest.mark.parametrize("per_job", [1, 3])
def test_f08_unclosed_and_empty_files_are_left_out(config, tmp_path, per_job):
    good = write_hand_made(tmp_path / "TT_0.root", 60)
    bad = [unclosed(tmp_path / "TT_1.root"), without_tree(tmp_path / "TT_2.root")]
    made = build(config, [bad[0], good, bad[1]], tmp_path / "set", per_job=per_job, skip_bad_files=True)
    assert made.manifest.n_jets == 60
    assert [source.path for source in made.manifest.sources] == [good]
    first, second = made.manifest.skipped_files
    assert "TT_1.root' was not closed by the job that wrote it" in first.reason
    assert "TT_2.root' has no tree 'deepntuplizer/tree'; its trees: none" in second.reason


@pytest.mark.parametrize("make", [unclosed, without_tree])
def test_f08_strict_without_the_option(config, tmp_path, make):
    paths = [write_hand_made(tmp_path / "TT_0.root", 60), make(tmp_path / "TT_1.root")]
    with pytest.raises((CorruptFileError, MissingTreeError), match="TT_1.root"):
        build(config, paths, tmp_path / "set")


def test_f08_a_tree_that_no_file_has_is_an_error_of_the_config(tmp_path):
    config = small_config(tmp_path, treename="events")
    paths = [write_hand_made(tmp_path / f"TT_{i}.root", 60 + i) for i in range(2)]
    message = (
        "none of the 2 files can be used, the first: .*has no tree 'events'; its trees: deepntuplizer/tree: correct"
    )
    with pytest.raises(DataError, match=message):
        build(config, paths, tmp_path / "set", skip_bad_files=True)


@pytest.mark.parametrize("number", [errno.ENODEV, errno.EMFILE, errno.ESTALE, errno.ENOMEM])
def test_f09_trouble_of_the_machine_leaves_no_file_out(config, tmp_path, monkeypatch, number):
    paths = [write_hand_made(tmp_path / f"TT_{i}.root", 60 + i) for i in range(2)]
    get = uproot.source.object.ObjectResource.get

    def fail(self, start, stop):
        if str(self.obj.name).endswith("TT_1.root"):
            raise OSError(number, "trouble")
        return get(self, start, stop)

    monkeypatch.setattr(uproot.source.object.ObjectResource, "get", fail)
    with pytest.raises(DataError, match=r"TT_1.root' cannot be read: .*, then type the command again"):
        build(config, paths, tmp_path / "set", skip_bad_files=True)


def test_f01_a_block_of_a_root_file_that_cannot_be_read(config, tmp_path, monkeypatch):
    paths = [write_hand_made(tmp_path / f"TT_{i}.root", 60 + i) for i in range(2)]
    get = uproot.source.object.ObjectResource.get

    def fail(self, start, stop):
        if str(self.obj.name).endswith("TT_1.root") and stop > 3000:
            raise OSError(errno.EIO, "Input/output error")
        return get(self, start, stop)

    monkeypatch.setattr(uproot.source.object.ObjectResource, "get", fail)
    made = build(config, paths, tmp_path / "set", skip_bad_files=True)
    assert made.manifest.n_jets == 60
    assert "TT_1.root' cannot be read: Input/output error: copy it again, or" in made.manifest.skipped_files[0].reason


def test_f01_a_block_of_a_staged_file_that_cannot_be_read(config, tmp_path, monkeypatch):
    """A file that has become shorter behaves as one with a bad block."""
    path = write_hand_made(tmp_path / "TT.root", 3000)
    verify = staged_file.StagedFile.verify

    def fail(self):
        os.truncate(self.path, 4096)
        verify(self)

    monkeypatch.setattr(staged_file.StagedFile, "verify", fail)
    with pytest.raises(CorruptFileError, match=r"cannot be read: Input/output error: remove it and convert again"):
        build(config, [path], tmp_path / "set")
