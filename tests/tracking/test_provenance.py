"""Lock, patch and system: enough to make code and environment again."""

import subprocess
import sys
from importlib import metadata

import pytest

from bhive_mltf.tracking import environment, provenance


def git(folder, *arguments):
    done = subprocess.run(
        ["git", "-C", folder, "-c", "user.name=x", "-c", "user.email=x@x", *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "a.py").write_text("a = 1\n")
    (folder / "b.bin").write_bytes(bytes(range(256)))
    (folder / ".gitignore").write_text("ignored.py\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "a")
    return folder


def test_a_patch_makes_the_same_code_again(checkout, tmp_path):
    assert provenance.patch(checkout) == ""
    (checkout / "a.py").write_text("a = 2\n")
    (checkout / "b.bin").write_bytes(b"\x00\xff" * 200)
    (checkout / "new.py").write_text("new = 1")
    (checkout / "notes of mine.txt").write_text("a secret")
    (checkout / "ignored.py").write_text("x")
    before = git(checkout, "status", "--porcelain"), git(checkout, "count-objects")
    patch = provenance.patch(checkout)
    assert (git(checkout, "status", "--porcelain"), git(checkout, "count-objects")) == before
    git(tmp_path, "clone", "-q", str(checkout), str(tmp_path / "clone"))
    assert provenance.apply_patch(tmp_path / "clone", patch) == ""
    for name in ("a.py", "b.bin", "new.py"):
        assert (tmp_path / "clone" / name).read_bytes() == (checkout / name).read_bytes()
    assert not (tmp_path / "clone" / "notes of mine.txt").exists()
    assert not (tmp_path / "clone" / "ignored.py").exists()
    assert provenance.apply_patch(tmp_path / "clone", patch) != ""


def test_no_patch_without_git_or_for_a_large_one(checkout, tmp_path, monkeypatch):
    assert provenance.patch(tmp_path) == ""
    (checkout / "a.py").write_text("a = 2\n")
    monkeypatch.setattr(provenance, "MAX_PATCH", 10)
    assert provenance.patch(checkout) == ""


def test_the_lock_has_every_package_once():
    text = provenance.lock()
    read = provenance.read_lock(text)
    assert text.startswith(f"# Python {sys.version.split()[0]}")
    assert read["numpy"][0] == metadata.version("numpy")
    assert len(read["numpy"][1]) == 32
    assert len(read) == len(text.splitlines()) - 1
    assert provenance.read_lock("# x\na.B_c==1.0\nd==2  # contents ab12\nnonsense\n") == {
        "a-b-c": ("1.0", ""),
        "d": ("2", "ab12"),
    }


class Installed:
    """A package with one file of what is noted beside it."""

    def __init__(self, text):
        self.text = text

    def read_text(self, _):
        return self.text


def test_where_a_package_came_from():
    commit = '{"url": "https://x/y.git", "vcs_info": {"vcs": "git", "commit_id": "ab", "requested_revision": "main"}}'
    folder = '{"url": "file:///a%20b", "dir_info": {"editable": true}}'
    found = [provenance.origin(Installed(text)) for text in (commit, folder, None, "no JSON", "{}")]
    assert found == ["git+https://x/y.git@ab", "file:///a%20b", "", "", ""]
    text = "a==1  # contents ab12  # from git+https://x/y.git@ab\nB_c==2  # from file:///a%20b\nd==3  # contents ff\n"
    assert provenance.read_origins(text) == {"a": "git+https://x/y.git@ab", "b-c": "file:///a%20b"}
    assert provenance.read_lock(text) == {"a": ("1", "ab12"), "b-c": ("2", ""), "d": ("3", "ff")}


def test_contents_are_those_of_the_wheel():
    one = "p/a.py,sha256=x,1\np-1.dist-info/RECORD,,\np/__pycache__/a.pyc,,\n../../../bin/p,sha256=y,2\n"
    other = "p-1.dist-info/INSTALLER,sha256=z,4\np/a.py,sha256=x,1\n../../../bin/p,sha256=other,2\n"
    changed = "p/a.py,sha256=changed,1\n"
    digests = [provenance.contents(Installed(record)) for record in (one, other, changed, None)]
    assert digests[0] == digests[1]
    assert digests[2] not in ("", digests[0])
    assert digests[3] == ""


def test_the_job_is_recorded_without_its_token(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("SLURM_JWT", "a-long-token")
    found = provenance.system()
    assert found["slurm"]["job_id"] == "42"
    assert "a-long-token" not in str(found)
    assert "os" in found


def test_a_command_is_recorded_without_credentials(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["law", "run", "--uri", "https://me:word@host/x"])
    assert environment.command_line() == "law run --uri 'https://***@host/x'"
