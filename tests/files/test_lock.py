import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from bhive_mltf.errors import LockedError
from bhive_mltf.files import lock
from bhive_mltf.files.holder import Holder, Life
from bhive_mltf.files.lock import LOCK_NAME, DirectoryLock


def write_holder(directory, holder):
    (directory / LOCK_NAME).write_text(json.dumps(holder.__dict__))


def test_a_second_holder_is_told_who_has_it(tmp_path):
    with (
        DirectoryLock(tmp_path),
        pytest.raises(LockedError, match=f"process {os.getpid()} on "),
        DirectoryLock(tmp_path),
    ):
        pytest.fail("two holders")
    with DirectoryLock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_waiting_for_the_lock(tmp_path):
    order = []

    def second():
        with DirectoryLock(tmp_path, wait_s=30):
            order.append("second")

    with DirectoryLock(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    code = (
        "import os, sys; from bhive_mltf.files.lock import DirectoryLock; "
        "DirectoryLock(sys.argv[1]).__enter__(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert lock.read_holder(tmp_path) is not None
    with DirectoryLock(tmp_path, wait_s=5):
        assert lock.read_holder(tmp_path).pid == os.getpid()


def test_a_process_number_used_again_does_not_hold_the_lock(tmp_path):
    mine = Holder.this_process()
    *identity, ticks = mine.token.split(".")
    write_holder(tmp_path, dataclasses.replace(mine, token=".".join([*identity, str(int(ticks) - 100)])))
    with DirectoryLock(tmp_path, wait_s=5):
        pass


def test_a_lock_of_an_earlier_version_goes_by_its_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "STALE_AFTER_S", 1.0)
    write_holder(tmp_path, Holder(socket.gethostname(), 2**22 + 1, 0.0, "4f254072358a4ce4"))
    assert lock.read_holder(tmp_path).life() is Life.UNKNOWN
    with pytest.raises(LockedError), DirectoryLock(tmp_path, wait_s=0.2):
        pytest.fail("took it at once")
    with DirectoryLock(tmp_path, wait_s=10):
        # earlier versions read the new one
        assert sorted(json.loads((tmp_path / LOCK_NAME).read_text())) == ["host", "pid", "process_started", "token"]


def test_another_host_holds_it_as_long_as_it_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "STALE_AFTER_S", 1.0)
    write_holder(tmp_path, Holder("elsewhere", 1, 0.0, "token"))
    stop = threading.Event()

    def beat():
        while not stop.wait(0.1):
            os.utime(tmp_path / LOCK_NAME)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(LockedError, match="process 1 on elsewhere"), DirectoryLock(tmp_path, wait_s=2):
            pytest.fail("took a live lock")
    finally:
        stop.set()
        thread.join()
    with DirectoryLock(tmp_path, wait_s=10):
        pass


def test_many_threads_one_holder(tmp_path):
    inside, worst = [], []

    def work():
        with DirectoryLock(tmp_path, wait_s=60):
            inside.append(1)
            worst.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worst == [1] * 4


def test_a_lock_file_with_rubbish_is_taken_over(tmp_path):
    (tmp_path / LOCK_NAME).write_text("")
    with DirectoryLock(tmp_path, wait_s=5):
        pass
