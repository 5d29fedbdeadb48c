"""One big file, several processes: the staged file is the same bytes; and what bounds the memory."""

import dataclasses

import numpy as np
import pytest
import uproot

from bhive_mltf.data.build import merge
from bhive_mltf.data.build.construct import construct
from bhive_mltf.data.build.merge import in_background, in_threads, merged
from bhive_mltf.data.build.stage import Span, cut, removing_stale_files, stage_many, temporary_part
from bhive_mltf.data.build.staged_file import StagedFile
from bhive_mltf.data.ntuples import jobs as ntuple_jobs
from bhive_mltf.data.ntuples.jobs import ReadOptions, StageJob
from bhive_mltf.data.schema import Schema
from bhive_mltf.errors import CorruptFileError, ParameterError
from bhive_mltf.testing.root_files import write_tree
from tests.helpers.building import build, hand_made, same, small_config


@pytest.fixture
def config(tmp_path):
    return small_config(tmp_path)


def job(config, target, *paths, **changes):
    return StageJob(config, tuple(paths), target, 5, **{"options": ReadOptions(max_jets=100), **changes})


def big_file(path, n_jets=1000):
    return str(write_tree(path, "deepntuplizer/tree", hand_made(n_jets), basket_jets=60))


def broken_file(path):
    """Whole at its ends, with a damaged basket in the middle."""
    big_file(path)
    with uproot.open(path) as file:
        start = int(file["deepntuplizer/tree"]["jet_pt"].member("fBasketSeek")[9]) + 90
    content = bytearray(path.read_bytes())
    content[start : start + 60] = bytes(60)
    path.write_bytes(content)
    return str(path)


def test_cut_between_chunks(config, tmp_path):
    sizes = {"TT": 500, "QCD": 0, "QCD_1": 250}
    paths = [big_file(tmp_path / f"{name}.root", size) for name, size in sizes.items()]
    found = cut(job(config, tmp_path / "x.jets", *paths), 3)
    assert [piece.spans for piece in found] == [
        (Span(0, 0, 200),),
        (Span(0, 200, 500),),
        (Span(1), Span(2, 0, 250)),
    ]
    assert len({piece.path for piece in found}) == 3
    assert len(cut(job(config, tmp_path / "x.jets", paths[0]), 50)) == 5


@pytest.mark.parametrize("workers", [2, 3])
def test_staged_files_do_not_depend_on_workers(config, tmp_path, workers):
    paths = [big_file(tmp_path / "TT.root"), broken_file(tmp_path / "TT_1.root"), big_file(tmp_path / "QCD.root", 130)]
    serial = job(config, tmp_path / "serial.jets", *paths, skip_bad_files=True)
    parallel = dataclasses.replace(serial, target=tmp_path / "parallel.jets")
    [record] = stage_many([serial], 1)
    assert stage_many([parallel], workers) == [record]
    one, other = (StagedFile(made.target, Schema.of(config)) for made in (serial, parallel))
    assert one.record == other.record
    assert len(one) == len(other)
    for chunk in range(len(one)):
        a, b = (staged.read(chunk, 0, len(staged.keys[chunk])) for staged in (one, other))
        assert same(a, b)
        np.testing.assert_array_equal(a.jet_id, b.jet_id)
        np.testing.assert_array_equal(one.keys[chunk], other.keys[chunk])
    assert [source.path for source in record.sources] == [paths[0], paths[2]]
    assert [skip.path for skip in record.skipped] == [paths[1]]
    assert record.accounting.read == 1130
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".jets", ".jets", ".root", ".root", ".root", ".yml"]


def test_an_error_in_a_piece_leaves_nothing(config, tmp_path):
    made = job(config, tmp_path / "staged" / "x.jets", broken_file(tmp_path / "TT.root"))
    with pytest.raises(CorruptFileError, match="TT.root"):
        stage_many([made], 2)
    assert list(made.target.parent.iterdir()) == []


def test_a_staged_file_that_changed_is_refused(config, tmp_path):
    made = job(config, tmp_path / "x.jets", big_file(tmp_path / "TT.root"))
    stage_many([made])
    content = bytearray(made.target.read_bytes())
    content[5000] ^= 1
    made.target.write_bytes(content)
    staged = StagedFile(made.target, Schema.of(config))
    with pytest.raises(CorruptFileError, match=r"x.jets' is damaged \(.*\): remove it and convert again"):
        staged.verify()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_of_the_merge_do_not_change_the_order(config, tmp_path, monkeypatch, threads):
    paths = [big_file(tmp_path / f"TT_{i}.root", 300 + i) for i in range(3)]
    jobs = [job(config, tmp_path / f"{i}.jets", path) for i, path in enumerate(paths)]
    stage_many(jobs)
    staged = [StagedFile(made.target, Schema.of(config)) for made in jobs]
    contents = np.array([int(f.record.sources[0].content_id, 16) for f in staged], np.uint64)
    monkeypatch.setattr(merge, "_bucket_jets", lambda *_: 20)
    one, several = (list(merged(staged, contents, threads=n)) for n in (1, threads))
    assert len(one) == len(several) > 30
    assert all(same(a, b) and np.array_equal(a.jet_id, b.jet_id) for a, b in zip(one, several, strict=True))


def test_threads_are_few_steps_ahead():
    taken, running = [], []

    def items():
        for i in range(20):
            taken.append(i)
            yield i

    for result in in_threads(lambda i: running.append(i) or i * i, items(), 2):
        assert len(taken) <= int(result**0.5) + 4
    assert sorted(running) == list(range(20))


def test_an_error_in_a_thread_arrives():
    def fail(i):
        if i == 3:
            raise CorruptFileError("three")
        return i

    with pytest.raises(CorruptFileError, match="three"):
        list(in_threads(fail, range(10), 2))


@pytest.mark.parametrize("layout", ["ArrowDataset", "LZ4Dataset"])
def test_the_set_is_the_same_bytes_for_any_number_of_threads(tmp_path, layout):
    config = small_config(tmp_path, dataset=layout)
    path = big_file(tmp_path / "TT_0.root", 5000)
    made = job(config, tmp_path / "0.jets", path)
    stage_many([made])
    found = []
    for threads in (1, 2, 3):
        arguments = {"chunk_size": 2100, "seed": 5, "filelist": [path], "threads": threads}
        construct(config, [made.target], tmp_path / str(threads), **arguments)
        found.append({p.name: p.read_bytes() for p in (tmp_path / str(threads)).iterdir() if p.suffix != ".txt"})
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("apart", [False, True])
def test_one_step_behind_in_order(apart):
    done = []
    for seen, item in enumerate(in_background(done.append, range(20), apart=apart)):
        assert item == seen
        assert len(done) >= seen
    assert done == list(range(20))

    def fail(i):
        if i == 3:
            raise CorruptFileError("three")

    with pytest.raises(CorruptFileError, match="three"):
        list(in_background(fail, range(20), apart=apart))


def test_the_budget_decides_the_chunks(config, tmp_path):
    sizes = [ReadOptions(memory_mb=mb).chunk_bytes for mb in (320, 340, 1024, 100_000)]
    assert sizes == sorted(sizes)
    assert sizes[0] == (100 << 20) // 8
    assert sizes[2] == sizes[3] == 16 << 20
    with pytest.raises(ParameterError, match="--conversion-memory 200: a converting process needs 320 MB or more"):
        job_of_little = job(config, tmp_path / "x.jets", big_file(tmp_path / "TT.root"))
        stage_many([dataclasses.replace(job_of_little, options=ReadOptions(memory_mb=200))])


def test_the_budget_does_not_change_the_set(config, tmp_path, monkeypatch):
    paths, sets = [big_file(tmp_path / "TT.root")], []
    for size in (2_000, 100_000):
        monkeypatch.setattr(ntuple_jobs, "_MOST_BYTES", size)
        sets.append(build(config, paths, tmp_path / str(size)))
    small, large = sets
    assert small.manifest.shards == large.manifest.shards
    assert small.manifest.digest == large.manifest.digest


def test_leftovers_of_killed_processes_are_swept(tmp_path):
    target = tmp_path / "x.jets"
    left = temporary_part(target, 0)
    other = temporary_part(tmp_path / "y.jets", 0)
    for path in (left, other):
        path.write_text("half")
    with removing_stale_files(target):
        assert not left.exists()
        left.write_text("being written")
        with removing_stale_files(target):
            assert left.exists()
    assert sorted(tmp_path.iterdir()) == sorted([left, other])


def test_a_third_process_leaves_what_the_first_writes(tmp_path):
    target = tmp_path / "x.jets"
    with removing_stale_files(target):
        with removing_stale_files(target):
            written = temporary_part(target, 0)
            written.write_text("being written")
        with removing_stale_files(target):
            assert written.exists()
    assert sorted(tmp_path.iterdir()) == [written]
