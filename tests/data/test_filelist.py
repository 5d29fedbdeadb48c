"""Lists of files, processes and content ids."""

import os

import pytest

from bhive_mltf.data.manifest import content_id, refuse_equal_contents
from bhive_mltf.data.ntuples.filelist import match_process, one_file_per_process, read_filelist
from bhive_mltf.errors import CorruptFileError, FilelistError

JETCLASS = ("TTBarLep", "TTBar", "HToBB", "ZToQQ")


@pytest.fixture
def folder(tmp_path):
    for name in ("a.root", "b.root", "sub/c.root"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def write(folder, *lines):
    path = folder / "list.txt"
    path.write_text("\n".join(lines))
    return path


def test_w06_blank_lines_do_not_end_the_list(folder):
    path = write(folder, "a.root", "", "   ", "# comment", "sub/c.root", "root://host//store/x.root", "")
    expected = (str(folder / "a.root"), str(folder / "sub/c.root"), "root://host//store/x.root")
    assert read_filelist(path) == expected


def test_relative_to_working_directory_first(folder, monkeypatch):
    (folder / "sub/a.root").write_bytes(b"other")
    monkeypatch.chdir(folder / "sub")
    assert read_filelist(write(folder, "a.root", "b.root")) == (str(folder / "sub/a.root"), str(folder / "b.root"))


def test_variables_and_home_are_expanded(folder, monkeypatch):
    monkeypatch.setenv("JETS", str(folder))
    monkeypatch.setenv("HOME", str(folder))
    assert read_filelist(write(folder, "$JETS/a.root", "~/b.root")) == (str(folder / "a.root"), str(folder / "b.root"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["", "# nothing"], "names no file"),
        (["a.root", "missing.root"], "line 2 of .*'missing.root', which does not exist"),
        (["a.root", "sub/../a.root"], "twice, in lines 1 and 2"),
    ],
)
def test_unusable_lists(folder, lines, message):
    with pytest.raises(FilelistError, match=message):
        read_filelist(write(folder, *lines))


def test_missing_list(tmp_path):
    with pytest.raises(FilelistError, match="none.txt' \\(No such file"):
        read_filelist(tmp_path / "none.txt")


def test_a_root_file_is_no_list(tmp_path):
    (tmp_path / "jets.root").write_bytes(b"root\xff\xfe\x00")
    with pytest.raises(FilelistError, match="not a text file"):
        read_filelist(tmp_path / "jets.root")


@pytest.mark.parametrize(
    ("path", "processes", "expected"),
    [
        ("/data/TTBarLep_000.root", JETCLASS, "TTBarLep"),
        ("/data/TTBarLep_000.root", ("TTBar", "TTBarLep"), "TTBarLep"),
        ("/data/TTBar_000.root", ("TTBar", "TTBarLep"), "TTBar"),
        ("/data/TT/QCD_1.root", ("TT", "QCD"), "QCD"),
        ("/data/QCD/2024/file_1.root", ("TT", "QCD"), "QCD"),
        ("root://host.cern.ch//store/HToBB/0000/jets_1.root", JETCLASS, "HToBB"),
        ("/data/HToBB_ZToQQ.root", ("ZToQQ", "HToBB"), "ZToQQ"),
    ],
)
def test_w05_one_rule_for_processes(path, processes, expected):
    assert processes[match_process(path, processes)] == expected


def test_default_takes_every_file():
    assert match_process("/any/file.root", ("default",)) == 0


def test_w06_a_file_without_a_process_is_an_error():
    with pytest.raises(FilelistError, match=r"'/data/DY.root' matches no process .*\(TTBarLep, TTBar, HToBB, ZToQQ\)"):
        match_process("/data/DY.root", JETCLASS)


def test_one_file_per_process():
    paths = ("/d/TTBar_0.root", "/d/TTBarLep_0.root", "/d/TTBar_1.root", "/d/HToBB_0.root")
    assert one_file_per_process(paths, JETCLASS) == ("/d/TTBar_0.root", "/d/TTBarLep_0.root", "/d/HToBB_0.root")


def test_content_id_is_of_the_content(folder):
    (folder / "copy.root").write_bytes(b"a.root")
    assert content_id(folder / "copy.root") == content_id(folder / "a.root") != content_id(folder / "b.root")


def test_content_id_of_many_pieces(tmp_path, monkeypatch):
    (tmp_path / "big").write_bytes(os.urandom(10_000))
    whole = content_id(tmp_path / "big")
    monkeypatch.setattr("bhive_mltf.data.manifest._PIECE_BYTES", 999)
    assert content_id(tmp_path / "big") == whole


def test_empty_file_has_no_content_id(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(CorruptFileError, match="is empty"):
        content_id(tmp_path / "empty")


def test_same_content_twice():
    with pytest.raises(FilelistError, match="'/a' and '/c' hold the same bytes"):
        refuse_equal_contents([("/a", 1), ("/b", 2), ("/c", 1)])
