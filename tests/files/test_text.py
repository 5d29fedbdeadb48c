"""Cases 12 to 15: text files with a byte order mark, and folders that are read-only."""

import codecs
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bhive_mltf import config as configs
from bhive_mltf.data.ntuples import filelist
from bhive_mltf.files.text import read_text

REPOSITORY = Path(__file__).parents[2]
ENCODINGS = {
    "plain": lambda text: text.encode(),
    "UTF-8 with a mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "UTF-16 little": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "UTF-16 big": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
}


@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
def test_f12_text_files_with_a_byte_order_mark(tmp_path, encode):
    path = tmp_path / "list.txt"
    path.write_bytes(encode("Grüße\r\n"))
    assert read_text(path) == "Grüße\r\n"


@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
def test_f12_lists_and_configs_with_a_byte_order_mark(tmp_path, encode):
    (tmp_path / "TT.root").touch()
    (tmp_path / "list.txt").write_bytes(encode("TT.root\n"))
    assert filelist.read_filelist(tmp_path / "list.txt") == (str(tmp_path / "TT.root"),)
    shipped = (REPOSITORY / "configs" / "offline_run3.yml").read_text()
    (tmp_path / "offline_run3.yml").write_bytes(encode(shipped))
    found = configs.load(str(tmp_path / "offline_run3.yml"))
    assert found.dataset_digest == configs.load("offline_run3").dataset_digest


@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
def test_f12_joined_files_have_the_mark_inside(tmp_path, encode):
    """As `cat one.txt two.txt` leaves it."""
    path = tmp_path / "list.txt"
    path.write_bytes(encode("one\n") + encode("two\n"))
    assert read_text(path) == "one\ntwo\n"


def test_f12_what_is_no_text_is_said_so(tmp_path):
    (tmp_path / "a").write_bytes(b"\x00\xff\xfe\x80")
    with pytest.raises(UnicodeDecodeError):
        read_text(tmp_path / "a")


def source(checkout, variables, shell="bash", mount=""):
    """What `source setup.sh` says and sets."""
    environment = {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    script = f'{mount} cd {checkout}; . ./setup.sh; echo "exit $?"; echo "LAW_HOME=$LAW_HOME"'
    command = [*(["unshare", "-m"] if mount else []), shell, "-c", script]
    done = subprocess.run(command, env={**environment, **variables}, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """What setup.sh needs of a checkout."""
    folder = tmp_path_factory.mktemp("somewhere") / "checkout"
    folder.mkdir()
    for name in ("setup.sh", "law.cfg"):
        shutil.copy(REPOSITORY / name, folder)
    for name in ("tasks", "workflows", "bhive_mltf", "configs"):
        (folder / name).symlink_to(REPOSITORY / name)
    return folder


@pytest.fixture
def read_only(checkout):
    mount = f"mount --bind {checkout} {checkout} && mount -o remount,ro,bind {checkout} &&"
    if not shutil.which("unshare") or "exit" not in source("/", {}, mount=f"{mount} echo exit;"):
        pytest.skip("this machine does not let us mount a folder read-only")
    return mount


def test_f12_a_read_only_checkout_is_sourced(checkout, read_only, tmp_path):
    said = source(checkout, {"DATA_PATH": str(tmp_path)}, mount=read_only)
    assert "exit 0" in said
    assert f"LAW_HOME={tmp_path}/.law" in said
    assert (tmp_path / ".law" / "index").exists()
    said = source(checkout, {}, mount=read_only)
    assert "exit 1" in said
    assert "/output cannot be written: export DATA_PATH, a folder of yours" in said


def test_f12_an_exported_home_of_law_is_kept(checkout, tmp_path):
    said = source(checkout, {"DATA_PATH": str(tmp_path / "out"), "LAW_HOME": str(tmp_path / "law")})
    assert "exit 0" in said
    assert f"LAW_HOME={tmp_path}/law" in said
    assert not (checkout / ".law").exists()
    (tmp_path / "file").touch()
    said = source(checkout, {"DATA_PATH": str(tmp_path / "out"), "LAW_HOME": str(tmp_path / "file" / "law")})
    assert "exit 1" in said
    assert "cannot be written: export LAW_HOME" in said
