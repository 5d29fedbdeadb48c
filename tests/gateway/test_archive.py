"""What an uploaded archive may hold."""

import asyncio
import gzip
import hashlib
import io
import tarfile

import pytest

from bhive_mltf.gateway.errors import ArchiveError
from bhive_mltf.gateway.projects import archive, blobs
from bhive_mltf.gateway.settings import Limits
from bhive_mltf_client import packing

LIMITS = Limits(archive_bytes=100_000, file_bytes=50_000, members=20, inspection_s=20)


def made(path, *members, format=tarfile.PAX_FORMAT):
    """An archive of (name, content or changes of the member)."""
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            data = b""
            if isinstance(content, bytes):
                data, member.size = content, len(content)
            else:
                for key, value in content.items():
                    setattr(member, key, value)
            tar.addfile(member, io.BytesIO(data))
    return path


HOSTILE = {
    "parent": [("../evil", b"x")],
    "parent in the middle": [("a/../../evil", b"x")],
    "absolute": [("/etc/evil", b"x")],
    "dot": [("./train.py", b"x")],
    "empty part": [("a//b", b"x")],
    "symbolic link": [("link", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})],
    "link inside": [("a", b"x"), ("link", {"type": tarfile.SYMTYPE, "linkname": "a"})],
    "hard link": [("a", b"x"), ("link", {"type": tarfile.LNKTYPE, "linkname": "a"})],
    "device": [("null", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3})],
    "pipe": [("pipe", {"type": tarfile.FIFOTYPE})],
    "newline": [("a\nb", b"x")],
    "escape": [("a\x1b[2J", b"x")],
    "backslash": [("a\\b", b"x")],
    "twice": [("a", b"x"), ("a", b"y")],
    "two spellings": [("README", b"x"), ("readme", b"y")],
    "file and folder": [("a", b"x"), ("a/b", b"y")],
    "folder and file": [("a/b", b"y"), ("a", b"x")],
    "two spellings of a folder": [("Data/a", b"x"), ("data/b", b"y")],
    "long": [("a" * 300, b"x")],
    "deep": [("/".join("a" * 17), b"x")],
    "large file": [("a", b"x" * 50_001)],
    "large in sum": [(f"{n}", b"x" * 40_000) for n in range(3)],
    "many": [(f"{n}", b"") for n in range(21)],
    "surrogate": [("a\udcff", b"x")],
    "MLproject is no YAML": [("MLproject", b"a: [")],
    "MLproject is a bomb": [
        ("MLproject", b"a: &a [x,x]\n" + b"".join(b"b%d: &b%d [*a,*a]\n" % (n, n) for n in range(9)))
    ],
    "MLproject is no text": [("MLproject", b"\xff\xfe")],
    "MLproject is an object": [("MLproject", b"!!python/object/apply:os.system ['id']")],
    "MLproject needs a shell": [("MLproject", b"entry_points: {main: {command: 'python a.py | tee b'}}")],
    "MLproject asks for two environments": [("MLproject", b"conda_env: c.yaml\npython_env: e.yaml")],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archive_is_refused(tmp_path, name):
    path = made(tmp_path / "a.tar", *HOSTILE[name])
    with pytest.raises(ArchiveError):
        archive.inspect(path, LIMITS)
    with pytest.raises(ArchiveError):
        archive.unpack(path, tmp_path / "out", LIMITS)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"no archive at all", b"\0" * 511, gzip.compress(b"\0" * 1024, mtime=0)],
    ids=["empty", "text", "zeros", "gzip"],
)
def test_what_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(ArchiveError):
        archive.inspect(path, LIMITS)


def test_cut_archive_is_refused(tmp_path):
    path = made(tmp_path / "a.tar", ("a", b"x" * 20_000))
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ArchiveError):
        archive.unpack(path, tmp_path / "out", LIMITS)


def test_inspection_runs_in_a_process_of_its_own(tmp_path):
    path = made(
        tmp_path / "a.tar", ("MLproject", b"name: n\nentry_points: {main: {command: python a.py}}"), ("a.py", b"")
    )
    found = archive.check(path, LIMITS)
    assert (found.files, found.name, list(found.entry_points)) == (2, "n", ["main"])
    with pytest.raises(ArchiveError, match="neither a file nor a folder"):
        archive.check(made(tmp_path / "b.tar", *HOSTILE["pipe"]), LIMITS)


def test_very_long_name_needs_no_memory(tmp_path):
    path = made(tmp_path / "a.tar", ("a" * 200_000_000, b"x"), format=tarfile.GNU_FORMAT)
    with pytest.raises(ArchiveError):
        archive.check(path, LIMITS)


def test_packed_project_is_unpacked_as_it_was(tmp_path):
    project = tmp_path / "project"
    (project / "sub").mkdir(parents=True)
    (project / "train.py").write_text("print(1)")
    (project / "sub" / "run.sh").write_text("#!/bin/sh\n")
    (project / "sub" / "run.sh").chmod(0o750)
    digest = packing.pack(project, tmp_path / "a.tar")
    (tmp_path / "out").mkdir()
    archive.unpack(tmp_path / "a.tar", tmp_path / "out", LIMITS)
    assert (tmp_path / "out" / "sub" / "run.sh").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "out" / "train.py").read_text() == "print(1)"
    assert archive.inspect(tmp_path / "a.tar", LIMITS).files == 2
    assert hashlib.sha256((tmp_path / "a.tar").read_bytes()).hexdigest() == digest


def receive(content, path, *, gzipped, size=1000):
    async def chunks():
        for first in range(0, len(content), size):
            yield content[first : first + size]

    return asyncio.run(blobs.receive(chunks(), path, LIMITS, gzipped=gzipped))


def test_upload_is_hashed_uncompressed(tmp_path):
    content = bytes(range(256)) * 200
    digest = hashlib.sha256(content).hexdigest()
    assert receive(content, tmp_path / "a", gzipped=False) == digest
    assert receive(gzip.compress(content), tmp_path / "b", gzipped=True) == digest
    assert (tmp_path / "b").read_bytes() == content


def test_upload_that_is_too_large_is_cut(tmp_path):
    for content, gzipped in ((b"x" * 100_001, False), (gzip.compress(b"\0" * 10_000_000), True)):
        with pytest.raises(blobs.TooLargeError):
            receive(content, tmp_path / f"{gzipped}", gzipped=gzipped)
        assert (tmp_path / f"{gzipped}").stat().st_size <= 100_000


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(b"x" * 500, mtime=0)[:-9], gzip.compress(b"x", mtime=0) + b"more"],
    ids=["text", "cut", "with more behind it"],
)
def test_damaged_gzip_is_refused(tmp_path, content):
    with pytest.raises(ArchiveError):
        receive(content, tmp_path / "a", gzipped=True)
