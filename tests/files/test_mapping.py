"""Cases 01 and 05: a block that cannot be read is an error, and no shared mapping is needed."""

import errno
import mmap
import os
import subprocess
import sys

import numpy as np
import pytest

from bhive_mltf.errors import CorruptFileError, DiskError
from bhive_mltf.files import mapping

PAGE = mmap.PAGESIZE


@pytest.fixture
def path(tmp_path):
    found = tmp_path / "file_0.arrow"
    found.write_bytes(os.urandom(4 * PAGE))
    return found


def test_f05_maps_are_private(path, monkeypatch):
    class NoSharedMaps(mmap.mmap):
        def __new__(cls, handle, length, **options):
            if options.get("flags", mmap.MAP_SHARED) & mmap.MAP_SHARED:
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
            return super().__new__(cls, handle, length, **options)

    monkeypatch.setattr(mmap, "mmap", NoSharedMaps)
    assert bytes(mapping.open_map(path)) == path.read_bytes()


def test_f05_an_array_is_mapped_read_only_and_private(tmp_path):
    expected = np.arange(5000)
    np.save(tmp_path / "index.npy", expected)
    found = mapping.load_array(tmp_path / "index.npy", "build it again")
    np.testing.assert_array_equal(found, expected)
    assert isinstance(found, np.memmap)
    assert found.mode == "c"
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1


def test_f05_an_array_without_rows_is_mapped(tmp_path):
    np.save(tmp_path / "index.npy", np.zeros(0, [("file", "<u4")]))
    assert len(mapping.load_array(tmp_path / "index.npy", "build it again")) == 0


def test_f01_an_array_is_read_through_its_map(tmp_path, monkeypatch):
    """What system calls have read is kept by the system for a map only where files are cached."""
    looked = []
    monkeypatch.setattr(mapping, "populate", lambda *found: looked.append(found))
    path = tmp_path / "index.npy"
    np.save(path, np.arange(5000))
    array = mapping.load_array(path, "build it again")
    assert looked == [(mapping.map_of(array), path, 0, path.stat().st_size, "build it again")]


def test_f01_an_unreadable_part_is_an_error_before_it_kills(path):
    """A file that has become shorter behaves as one with a bad block."""
    code = (
        "import os, sys; from pathlib import Path; from bhive_mltf.files import mapping; "
        "from bhive_mltf.errors import CorruptFileError\n"
        f"path = Path(sys.argv[1]); file = mapping.open_map(path); os.truncate(path, {PAGE})\n"
        f"mapping.populate(file, path, 0, {PAGE}, 'build it again'); file[0]\n"
        "if sys.argv[2] == 'look':\n"
        f"    try: mapping.populate(file, path, {PAGE}, {PAGE}, 'build it again')\n"
        "    except CorruptFileError as error: sys.exit(str(error))\n"
        f"file[{PAGE}]\n"
    )
    done = {}
    for what in ("touch", "look"):
        path.write_bytes(bytes(4 * PAGE))
        command = [sys.executable, "-c", code, str(path), what]
        done[what] = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done["touch"].returncode == -7  # SIGBUS
    assert done["look"].stderr == f"'{path}' cannot be read: Input/output error: build it again\n"


def test_f01_where_the_system_cannot_populate_it_reads(path, monkeypatch):
    """Linux before 5.14, macOS."""
    monkeypatch.setattr(mapping, "_POPULATE_READ", 12345)
    file = mapping.open_map(path)
    mapping.populate(file, path, 10, 4 * PAGE, "build it again")
    os.truncate(path, 3 * PAGE)
    mapping.populate(file, path, 10, 2 * PAGE, "build it again")
    with pytest.raises(CorruptFileError, match=r"cannot be read: .*: build it again$"):
        mapping.populate(file, path, 3 * PAGE, 10, "build it again")


def test_f01_slices_are_read_by_system_calls(path):
    content = path.read_bytes()
    found = mapping.FileBytes(path)
    assert len(found) == len(content)
    assert found[10:30] == content[10:30]
    assert found[4 * PAGE - 3 : 5 * PAGE] == content[-3:]
    os.truncate(path, PAGE)
    with pytest.raises(OSError, match="it has become shorter"):
        found[PAGE : PAGE + 4]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EIO, CorruptFileError),
        (errno.ENODEV, DiskError),
        (errno.EMFILE, DiskError),
        (errno.ESTALE, DiskError),
        (errno.ENOMEM, DiskError),
        (errno.EACCES, DiskError),
    ],
)
def test_f09_only_what_the_file_shows_makes_it_bad(path, number, kind):
    found = mapping.cannot_read(path, OSError(number, os.strerror(number)), "build the training set again")
    assert type(found) is kind
    assert str(found).startswith(f"'{path}' cannot be read: {os.strerror(number)}: ")
