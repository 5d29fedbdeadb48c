"""Case 03: two processes never hold one lock, whatever happens to clocks, containers, hosts and the holder."""

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bhive_mltf.errors import DiskError, LockedError
from bhive_mltf.files import lock
from bhive_mltf.files.lock import LOCK_NAME, DirectoryLock
from tests.helpers.waiting import wait_for

REPOSITORY = Path(__file__).parents[2]
# heartbeat and patience shortened alike in both processes
SETTINGS = "from bhive_mltf.files import lock; lock.HEARTBEAT_S, lock.STALE_AFTER_S = 0.3, 3.0; "
NO_LINKS = "import os\ndef link(*a): raise PermissionError(1, 'Operation not permitted')\nos.link = link\n"
HOLD = (
    "import sys, time; "
    + SETTINGS
    + "lock.DirectoryLock(sys.argv[1]).__enter__(); print('held', flush=True); time.sleep(300)"
)
TAKE = (
    "import sys; " + SETTINGS + "from bhive_mltf.errors import LockedError\n"
    "try:\n    lock.DirectoryLock(sys.argv[1], wait_s=float(sys.argv[2])).__enter__(); print('taken')\n"
    "except LockedError: print('in use')\n"
)


def bound(content, place):
    """A shell command that shows other content in a file of /proc."""
    return f"f=$(mktemp) && {content} > $f && mount --bind $f {place} && exec "


def stepped(seconds):
    return ["unshare", "-m", "bash", "-c"], bound(
        f"awk '/^btime/ {{print $1, $2 + {seconds}; next}} {{print}}' /proc/stat", "/proc/stat"
    )


ELSEWHERE = "another host of the same name"
PLACES = {
    "the same place": None,
    "clock an hour ahead": stepped(3600),
    "clock an hour behind": stepped(-3600),
    "another container": (["unshare", "--pid", "--fork", "--mount-proc", "bash", "-c"], "exec "),
    "another container with the host's /proc": (["unshare", "--pid", "--fork", "bash", "-c"], "exec "),
    ELSEWHERE: (
        ["unshare", "-m", "bash", "-c"],
        bound("echo 01234567-89ab-cdef-0123-456789abcdef", "/proc/sys/kernel/random/boot_id"),
    ),
    "the same, renamed": (["unshare", "--uts", "bash", "-c"], "hostname elsewhere && exec "),
}


def command(place, code, *arguments):
    plain = [sys.executable, "-c", code, *map(str, arguments)]
    if PLACES[place] is None:
        return plain
    prefix, shell = PLACES[place]
    return [*prefix, shell + shlex.join(plain)]


@pytest.fixture(scope="module")
def _namespaces():
    """Namespaces need rights that not every machine gives."""
    for place in PLACES:
        if subprocess.run(command(place, "pass"), capture_output=True, check=False).returncode:
            pytest.skip(f"this machine does not let us try '{place}'")


@pytest.fixture
def start(tmp_path):
    started = []

    def start_holder(code=HOLD, directory=tmp_path):
        process = subprocess.Popen(
            command("the same place", code, directory), stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start_holder
    for process in started:
        process.kill()
        process.communicate()


def contend(directory, place, wait_s, code=TAKE):
    """The answer that a second process gets, as a function to wait for it."""
    process = subprocess.Popen(
        command(place, code, directory, wait_s),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )

    def answer():
        said, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        return said.strip()

    return answer


def answers(directories, wait_s):
    """What processes in all places get at the same time, with a lock or a patience for each."""
    waiting = {place: contend(directory, place, wait_s(place)) for place, directory in directories.items()}
    return {place: answer() for place, answer in waiting.items()}


@pytest.mark.usefixtures("_namespaces")
def test_f03_a_live_holder_keeps_its_lock(tmp_path, start):
    start()
    assert answers(dict.fromkeys(PLACES, tmp_path), lambda _: 5) == dict.fromkeys(PLACES, "in use")


@pytest.mark.usefixtures("_namespaces")
def test_f03_a_stopped_holder_keeps_its_lock(tmp_path, start):
    """On another machine for less than a minute, on this one for as long as it likes."""
    process = start()
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGSTOP)
    found = answers(dict.fromkeys(PLACES, tmp_path), lambda place: 1 if place == ELSEWHERE else 5)
    assert found == dict.fromkeys(PLACES, "in use")


@pytest.mark.usefixtures("_namespaces")
def test_f03_the_lock_of_a_killed_holder_is_free(tmp_path, start):
    directories = {place: tmp_path / str(number) for number, place in enumerate(PLACES)}
    for directory in directories.values():
        start(directory=directory).kill()
    # at once where the process is known to be gone, else when it was silent for long
    found = answers(directories, lambda place: 20 if place.startswith("another") else 2)
    assert found == dict.fromkeys(PLACES, "taken")


@pytest.mark.usefixtures("_namespaces")
def test_f03_a_holder_that_lost_its_lock_ends(tmp_path, start):
    process = start()
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGSTOP)
    keeps_it = TAKE.replace("print('taken')", "print('taken', flush=True); import os; os._exit(0)")
    assert contend(tmp_path, ELSEWHERE, 20, keeps_it)() == "taken"
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait(timeout=30) == 1


@pytest.mark.usefixtures("_namespaces")
@pytest.mark.parametrize(("holder", "other"), [(NO_LINKS, NO_LINKS), (NO_LINKS, ""), ("", NO_LINKS)])
def test_f04_one_holder_without_hard_links(tmp_path, start, holder, other):
    process = start(holder + HOLD)
    waiting = [contend(tmp_path, place, 1, other + TAKE) for place in ("the same place", "another container")]
    assert [answer() for answer in waiting] == ["in use"] * 2
    process.kill()
    process.wait()
    assert contend(tmp_path, "the same place", 5, other + TAKE)() == "taken"


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EIO])
def test_f04_the_lock_works_whatever_link_answers(tmp_path, monkeypatch, number):
    def link(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    with DirectoryLock(tmp_path), pytest.raises(LockedError), DirectoryLock(tmp_path):
        pytest.fail("two holders")
    assert list(tmp_path.iterdir()) == []


def test_f04_a_link_whose_answer_was_lost_counts(tmp_path, monkeypatch):
    link = os.link

    def lossy(source, target):
        link(source, target)
        raise FileExistsError(errno.EEXIST, "sent again")

    monkeypatch.setattr(os, "link", lossy)
    with DirectoryLock(tmp_path):
        assert (tmp_path / LOCK_NAME).exists()


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EDQUOT, errno.ESTALE, errno.EIO])
def test_f04_a_lock_that_cannot_be_made_is_a_sentence(tmp_path, monkeypatch, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with (
        pytest.raises(DiskError, match=r"^the lock '.*\.lock' cannot be written \(.+\): ") as raised,
        DirectoryLock(tmp_path),
    ):
        pytest.fail("no lock")
    assert raised.value.errno == number


def test_a_lock_being_written_is_not_rubbish(tmp_path, monkeypatch):
    """Where there are no hard links, a lock is empty for a moment."""
    monkeypatch.setattr(lock, "UNREADABLE_FOR_S", 30.0)
    (tmp_path / LOCK_NAME).touch()
    with pytest.raises(LockedError), DirectoryLock(tmp_path, wait_s=1.5):
        pytest.fail("took it")


def test_the_lock_beats_where_times_cannot_be_set(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, "no times")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.1)
    path = tmp_path / LOCK_NAME
    with DirectoryLock(tmp_path):
        before = path.stat().st_mtime_ns
        wait_for(lambda: path.stat().st_mtime_ns != before)
        assert json.loads(path.read_text())["pid"] == os.getpid()
