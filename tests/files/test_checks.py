"""What a folder can do is found out there, and nothing is left behind."""

import errno
import mmap
import os
import shutil
from types import SimpleNamespace

import pytest

from bhive_mltf.cli import check, main
from bhive_mltf.files import checks
from bhive_mltf.files.checks import Level, look_at_folder, look_at_shared_memory


def by_subject(folder):
    return {finding.subject: finding for finding in look_at_folder(folder)}


def refuse(number):
    def call(*_, **__):
        raise OSError(number, os.strerror(number))

    return call


def test_a_good_folder_is_good_and_stays_empty(tmp_path):
    found = by_subject(tmp_path / "new" / "output")
    assert {finding.level for finding in found.values()} == {Level.GOOD}
    assert {"folder", "space", "clock", "hard links", "mappings", "kernel locks"} <= {*found}
    assert list((tmp_path / "new" / "output").iterdir()) == []


def test_f04_no_hard_links_are_a_note(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    found = by_subject(tmp_path)["hard links"]
    assert (found.level, found.text) == (Level.NOTE, "none here (not permitted): locks do without")


@pytest.mark.parametrize(("flags", "level"), [(mmap.MAP_SHARED, Level.NOTE), (mmap.MAP_PRIVATE, Level.PROBLEM)])
def test_f05_what_mappings_there_are(tmp_path, monkeypatch, flags, level):
    make = mmap.mmap

    def some(handle, length, **options):
        if options.get("flags", mmap.MAP_SHARED) == flags:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return make(handle, length, **options)

    monkeypatch.setattr(checks.mmap, "mmap", some)
    assert by_subject(tmp_path)["mappings"].level is level


def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path):
    (tmp_path / "file").touch()
    (found,) = look_at_folder(tmp_path / "file" / "output")
    assert found.level is Level.PROBLEM
    assert f"'{tmp_path}/file/output' cannot be written (" in found.text


def test_little_room_is_a_problem(tmp_path, monkeypatch):
    there = SimpleNamespace(f_bavail=1000, f_frsize=4096, f_files=100, f_favail=3)
    monkeypatch.setattr(os, "statvfs", lambda _: there)
    found = by_subject(tmp_path)
    assert found["space"].level is found["inodes"].level is Level.PROBLEM
    assert found["inodes"].text == f"3 files more can be made in {tmp_path}: remove some"


def test_a_file_server_with_another_time_is_a_note(tmp_path, monkeypatch):
    now = checks.time.time()
    monkeypatch.setattr(checks, "time", SimpleNamespace(time=lambda: now + 3600))
    assert by_subject(tmp_path)["clock"].level is Level.NOTE


def test_shared_memory_that_is_away_or_small_is_a_note(tmp_path, monkeypatch):
    assert look_at_shared_memory(tmp_path / "none").level is Level.NOTE
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**16))
    assert look_at_shared_memory(tmp_path).level is Level.NOTE


def test_the_command_prints_findings_and_fails_for_problems(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    monkeypatch.setattr(check, "_gpus", lambda: iter(()))
    assert main(["check", str(tmp_path / "output")]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path}/output can be written" in said
    assert "will be made" in said
    (tmp_path / "file").touch()
    assert main(["check", str(tmp_path / "file" / "x")]) == 1
    assert "not everything will work here (folder)" in capsys.readouterr().err


def test_the_command_asks_for_a_folder(monkeypatch, capsys):
    monkeypatch.delenv("DATA_PATH", raising=False)
    assert main(["check"]) == 1
    assert "no folder: give one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "level"),
    [("echo slurm 23.02.7", Level.GOOD), ("echo no cluster >&2; exit 1", Level.NOTE), (None, Level.NOTE)],
)
def test_the_client_of_slurm(tmp_path, monkeypatch, script, level):
    for name in check._SLURM if script else ():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if script else str(tmp_path))
    assert check._slurm().level is level
