"""Staged files and their parallel making."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bhive_mltf.data.build import spread, stage
from bhive_mltf.data.build.stage import stage_many
from bhive_mltf.data.build.staged_file import StagedFile
from bhive_mltf.data.loader import order
from bhive_mltf.data.ntuples import jobs
from bhive_mltf.data.ntuples.jobs import ReadOptions, StageJob, earlier_names, staged_name
from bhive_mltf.data.schema import Schema
from bhive_mltf.errors import CorruptFileError, DataError, FilelistError, MissingBranchError
from tests.helpers.building import small_config, write_hand_made


@pytest.fixture
def config(tmp_path):
    return small_config(tmp_path)


def job(config, folder, *paths, **changes):
    return StageJob(config, tuple(paths), folder / "staged" / staged_name(config, paths, 5), 5, **changes)


def open_staged(config, made):
    return StagedFile(made.target, Schema.of(config))


def truncated(path, n_jets=300):
    write_hand_made(path, n_jets)
    path.write_bytes(path.read_bytes()[:2000])
    return str(path)


def test_chunks_are_sorted_by_the_global_key(config, tmp_path):
    made = job(config, tmp_path, write_hand_made(tmp_path / "TT.root", 50), options=ReadOptions(max_jets=20))
    record = stage.stage(made)
    staged = open_staged(config, made)
    assert staged.record == record
    assert [len(keys) for keys in staged.keys] == [20, 20, 10]
    content_id = int(record.sources[0].content_id, 16)
    for chunk in range(3):
        block = staged.read(chunk, 0, len(staged.keys[chunk]))
        counters = np.full(len(block), content_id, np.uint64), block.jet_id[:, 1].astype(np.uint64)
        expected = order.random_bits(order.random_key(5, "global order"), *counters)
        np.testing.assert_array_equal(staged.keys[chunk], expected)
        assert (np.diff(expected.astype(object)) > 0).all()
        np.testing.assert_array_equal(block.features["global"][:, 2], block.jet_id[:, 1])


def test_a_run_of_a_chunk(config, tmp_path):
    made = job(config, tmp_path, write_hand_made(tmp_path / "TT.root", 50))
    stage.stage(made)
    staged = open_staged(config, made)
    whole, part = staged.read(0, 0, 50), staged.read(0, 13, 29)
    expected = whole.take(np.arange(13, 29))
    for name in whole.features:
        np.testing.assert_array_equal(part.features[name], expected.features[name])
    np.testing.assert_array_equal(part.counts["cpf"], expected.counts["cpf"])
    np.testing.assert_array_equal(part.jet_id, expected.jet_id)


def test_several_files_in_one(config, tmp_path):
    paths = [write_hand_made(tmp_path / "TT_0.root", 7), write_hand_made(tmp_path / "QCD_0.root", 9)]
    record = stage.stage(job(config, tmp_path, *paths))
    assert [(s.path, s.entries, s.accepted, s.process) for s in record.sources] == [
        (paths[0], 7, 7, 0),
        (paths[1], 9, 9, 1),
    ]
    assert (record.accounting.read, record.accounting.accepted) == (16, 16)


def test_w01_dots_and_equal_names_do_not_collide(config, tmp_path):
    names = ("site.a.org/v1.2/TT_0.root", "site.a.org/v1.3/TT_0.root", "site.b.org/v1.2/TT_0.root")
    paths = [write_hand_made(tmp_path / name, 5 + i) for i, name in enumerate(names)]
    jobs = [job(config, tmp_path, path) for path in paths]
    assert len({made.target for made in jobs}) == 3
    records = stage_many(jobs)
    assert [record.accounting.accepted for record in records] == [5, 6, 7]
    assert [len(open_staged(config, made).keys[0]) for made in jobs] == [5, 6, 7]


def test_name_follows_the_inputs(config, tmp_path):
    path = write_hand_made(tmp_path / "TT.root", 5)
    first = staged_name(config, [path], 1)
    assert staged_name(config, [path], 1) == first
    other_config = small_config(tmp_path / "other", n_vtx_candidates=3)
    others = {
        staged_name(other_config, [path], 1),
        staged_name(config, [path], 2),
        staged_name(config, [path], 1, debug=True),
        staged_name(config, [path], 1, skip_bad_files=True),
        staged_name(config, [path, "root://host//TT.root"], 1),
        staged_name(config, [str(tmp_path / "missing.root")], 1),
    }
    os.utime(path, ns=(1, 1))
    others.add(staged_name(config, [path], 1))
    assert len(others) == 7
    assert first not in others


def test_debugging_reads_twenty_chunks(config, tmp_path):
    made = job(
        config, tmp_path, write_hand_made(tmp_path / "TT.root", 50), options=ReadOptions(max_jets=2, max_chunks=20)
    )
    record = stage.stage(made)
    assert (record.accounting.read, record.sources[0].entries) == (40, 50)
    assert ReadOptions.for_debugging().max_chunks == 20


def test_chunks_are_bounded_in_bytes(config, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "_MOST_BYTES", 8_000)
    made = job(config, tmp_path, write_hand_made(tmp_path / "TT.root", 1000))
    stage.stage(made)
    assert max(len(keys) for keys in open_staged(config, made).keys) < 200


def test_strict_by_default(config, tmp_path):
    made = job(config, tmp_path, write_hand_made(tmp_path / "TT.root"), truncated(tmp_path / "QCD.root"))
    with pytest.raises(CorruptFileError, match="QCD.root"):
        stage.stage(made)
    assert list(made.target.parent.iterdir()) == []


def test_skipped_files_are_recorded(config, tmp_path):
    good = [write_hand_made(tmp_path / f"TT_{i}.root", 5 + i) for i in range(2)]
    bad = truncated(tmp_path / "QCD.root")
    made = job(config, tmp_path, good[0], bad, good[1], skip_bad_files=True)
    record = stage.stage(made)
    assert [source.path for source in record.sources] == good
    assert [skip.path for skip in record.skipped] == [bad]
    assert "cut off" in record.skipped[0].reason
    assert record.accounting.read == 11


def test_jets_of_a_file_that_breaks_off_do_not_count(config, tmp_path, monkeypatch):
    paths = [write_hand_made(tmp_path / f"TT_{i}.root", 30 + i) for i in range(3)]
    original = stage.Converter.convert

    def break_off(self, chunk, path, *others):
        if path == paths[1] and chunk.start == 20:
            raise CorruptFileError("broken")
        return original(self, chunk, path, *others)

    monkeypatch.setattr(stage.Converter, "convert", break_off)
    made = job(config, tmp_path, *paths, skip_bad_files=True, options=ReadOptions(max_jets=10))
    record = stage.stage(made)
    assert record.accounting.accepted == 62 == sum(len(keys) for keys in open_staged(config, made).keys)
    blocks = [open_staged(config, made).read(i, 0, 1) for i in range(len(open_staged(config, made)))]
    assert {int(block.jet_id[0, 0]) for block in blocks} == {0, 1}


def test_missing_branch_is_never_skipped(tmp_path):
    config = small_config(tmp_path, vtx_features=["sv_dxy"])
    made = job(config, tmp_path, write_hand_made(tmp_path / "TT.root"), skip_bad_files=True)
    with pytest.raises(MissingBranchError, match="sv_dxy"):
        stage.stage(made)


def test_half_a_staged_file_is_refused(config, tmp_path):
    made = job(config, tmp_path, write_hand_made(tmp_path / "TT.root"))
    stage.stage(made)
    made.target.write_bytes(made.target.read_bytes()[:1000])
    with pytest.raises(CorruptFileError, match="is not a whole staged file"):
        open_staged(config, made)


def test_parallel_equals_serial(config, tmp_path):
    paths = [write_hand_made(tmp_path / f"TT_{i}.root", 20 + i) for i in range(3)]
    jobs = [job(config, tmp_path, path) for path in paths]
    parallel = stage_many(jobs, 2)
    contents = [made.target.read_bytes() for made in jobs]
    assert stage_many(jobs, 1) == parallel
    assert [made.target.read_bytes() for made in jobs] == contents


def test_errors_of_workers_arrive_as_they_are(config, tmp_path):
    good, bad = write_hand_made(tmp_path / "TT.root"), truncated(tmp_path / "QCD.root")
    with pytest.raises(CorruptFileError, match="QCD.root"):
        stage_many([job(config, tmp_path, bad), job(config, tmp_path, good)], 2)
    with pytest.raises(FilelistError, match="matches no process"):
        stage_many([job(config, tmp_path, write_hand_made(tmp_path / "DY.root"))])


def end_process():
    os._exit(9)


class Killed:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return end_process, ()


def test_a_killed_worker_is_an_error(config, tmp_path):
    path = write_hand_made(tmp_path / "TT.root")
    jobs = [job(config, tmp_path, path, options=Killed()), job(config, tmp_path, path)]
    with pytest.raises(DataError, match="a process of the conversion was killed"):
        stage_many(jobs, 2)


def test_no_workers_needed_for_one_job(config, tmp_path, monkeypatch):
    monkeypatch.setattr(spread, "ProcessPoolExecutor", None)
    assert len(stage_many([job(config, tmp_path, write_hand_made(tmp_path / "TT.root"))], 8)) == 1


def test_job_is_a_value(config, tmp_path):
    made = job(config, tmp_path, "x.root")
    assert dataclasses.replace(made) == made


def test_workers_do_without_torch():
    code = "import sys, bhive_mltf.data.build.stage, bhive_mltf.data.build.construct, bhive_mltf.data.dataset; "
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'mlflow', 'matplotlib', 'pandas', 'law')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


WORKERS = """
import os, sys, time
from bhive_mltf.data.build.spread import spread

def work(number):
    with open(f"{sys.argv[1]}/{os.getpid()}", "w"):
        time.sleep(60)

if __name__ == "__main__":
    spread([(work, i) for i in range(3)], 3)
"""


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_f15_workers_end_with_a_killed_command(tmp_path):
    (tmp_path / "command.py").write_text(WORKERS)
    (tmp_path / "pids").mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, tmp_path / "command.py", tmp_path / "pids"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        until(lambda: len(list((tmp_path / "pids").iterdir())) == 3)
        process.kill()
        # Ends only when nobody holds the command's output any more, as `law run ... | tee log` does.
        assert process.stdout.read() == b""
    pids = [path.name for path in (tmp_path / "pids").iterdir()]
    until(lambda: not any(alive(pid) for pid in pids), 10)


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_names_of_the_version_before(config, tmp_path):
    """An interrupted construction of that version left `<digest>.jets`: never taken for one of ours, and removed."""
    path = write_hand_made(tmp_path / "TT.root")
    status = Path(path).stat()
    files = [(path, status.st_size, status.st_mtime_ns)]
    content = [2, config.dataset_digest, config.processes, 5, False, True, files]
    expected = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32] + ".jets"
    assert earlier_names(config, [path], 5, skip_bad_files=True) == [expected]
    assert staged_name(config, [path], 5, skip_bad_files=True).endswith(".arrow")


def test_a_staged_file_of_the_version_before_is_refused(config, tmp_path):
    path = tmp_path / "x.jets"
    path.write_bytes(b"bhstage2" + bytes(2000) + b"bhstage2")
    with pytest.raises(CorruptFileError, match="is not a whole staged file: remove it and convert again"):
        StagedFile(path, Schema.of(config))
