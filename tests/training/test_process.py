"""What keeps ranks from outliving their launcher, and how they end."""

import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from bhive_mltf.ranks.process import LAUNCHER_VARIABLE
from bhive_mltf.ranks.signals import StopSignals

RANK = "from bhive_mltf.ranks.process import end_with_launcher; end_with_launcher(); import time; time.sleep(60)"
NO_PARENT_SIGNAL = (
    "import ctypes, types; ctypes.CDLL = lambda *a, **k: types.SimpleNamespace(prctl=lambda *a: 0); "
    "import bhive_mltf.ranks.process as p; "
    "p.end_with_launcher(); import time; time.sleep(60)"
)


def start_under_parent(rank_code):
    """A parent that starts a rank as the launcher does, and the rank's process."""
    code = (
        "import os, subprocess, sys, time\n"
        f"os.environ[{LAUNCHER_VARIABLE!r}] = str(os.getpid())\n"
        f"child = subprocess.Popen([sys.executable, '-c', {rank_code!r}], start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    return parent, psutil.Process(int(parent.stdout.readline()))


@pytest.mark.parametrize("code", [RANK, NO_PARENT_SIGNAL], ids=["parent-death signal", "watching only"])
def test_a_rank_ends_with_its_launcher(code):
    parent, rank = start_under_parent(code)
    time.sleep(0.6)
    assert rank.is_running()
    parent.kill()
    parent.communicate()
    psutil.wait_procs([rank], timeout=5)
    assert not rank.is_running() or rank.status() == psutil.STATUS_ZOMBIE


def test_a_rank_without_launcher_at_its_start_ends_at_once(monkeypatch):
    monkeypatch.setenv(LAUNCHER_VARIABLE, "1")
    ended = subprocess.run([sys.executable, "-c", RANK], start_new_session=True, timeout=20)
    assert ended.returncode == -signal.SIGKILL


def test_a_rank_started_by_hand_watches_nobody():
    code = RANK.replace("time.sleep(60)", "import threading; raise SystemExit(threading.active_count())")
    assert subprocess.run([sys.executable, "-c", code], timeout=20).returncode == 1


def test_leaving_runs_exit_handlers_and_flushes():
    code = (
        "import atexit, sys; from bhive_mltf.ranks.process import leave\n"
        "atexit.register(lambda: sys.stdout.write('handler '))\n"
        "sys.stdout.write('text '); leave(75)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], timeout=20, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (75, "text handler ")


def test_signals_are_noted_and_handlers_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        assert signals.received is None
        signal.raise_signal(signal.SIGTERM)
        assert signals.received is signal.SIGTERM
        signal.raise_signal(signal.SIGINT)
        assert signals.received is signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_signals_stay_as_they_are():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with StopSignals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
