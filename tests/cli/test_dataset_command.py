"""`bhive-mltf dataset`, as it is typed."""

import json
import shutil

import lz4.frame
import numpy as np
import pytest

from bhive_mltf.cli import main
from bhive_mltf.data.dataset import open_dataset
from bhive_mltf.files.records import Record
from tests.helpers.building import build, same, small_config, write_hand_made


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(scope="module", params=["ArrowDataset", "LZ4Dataset"])
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    config = small_config(folder, dataset=request.param)
    light = (np.arange(60) % 6 == 2).astype(np.int32)
    paths = [write_hand_made(folder / "TT_0.root", 60, isUD=light), write_hand_made(folder / "QCD_0.root", 30)]
    return config, build(config, paths, folder / "set", chunk_size=30)


@pytest.fixture
def copy(world, tmp_path):
    shutil.copytree(world[1].directory, tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture
def upstream(world, tmp_path):
    """A directory as upstream leaves it, of the jets of the LZ4 set."""
    config, dataset = world
    if dataset.manifest.layout != "LZ4Dataset":
        pytest.skip("upstream writes LZ4")
    directory = tmp_path / "theirs"
    directory.mkdir()
    for k in range(3):
        content = lz4.frame.decompress((dataset.directory / f"file_{k}.lz4").read_bytes())
        (directory / f"file_{k}.lz4").write_bytes(lz4.frame.compress(content))
    for name in ("weights.json", "histogram.npy"):
        shutil.copy(dataset.directory / name, directory / name)
    (directory / "processed_files.txt").write_text("\n".join(f"/gone/file_{k}.lz4" for k in range(3)))
    return config, dataset, directory


def run(capsys, *arguments):
    """Exit code, what was said, and the error."""
    code = main(["dataset", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_info_fits_the_terminal(world, capsys):
    _, dataset = world
    code, out, err = run(capsys, "info", dataset.directory)
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert dataset.manifest.digest in out
    lines = [line.split() for line in out.splitlines()]
    assert next(line for line in lines if line[:2] == ["TT", "isB"])[:4] == ["TT", "isB", "20", "25.0%"]
    assert next(line for line in lines if line[:2] == ["QCD", "isUD"])[:4] == ["QCD", "isUD", "10", "12.5%"]
    text = " ".join(out.split())
    assert "jets 80 in 3 shards of at most 30" in text
    assert "jets read 90, accepted 80, rejected:" in text
    assert "no_truth 10" in text
    assert "sources 2 files" in text


def test_info_as_json(world, capsys):
    _, dataset = world
    code, out, _ = run(capsys, "info", dataset.directory, "--json")
    found = json.loads(out)
    manifest = dataset.manifest
    assert code == 0
    assert (found["jets"], found["layout"], found["digest"]) == (80, manifest.layout, manifest.digest)
    assert (found["config"], found["seed"], found["precision"]) == ("small", 1, "float32")
    assert [shard["rows"] for shard in found["shards"]] == [30, 30, 20]
    assert sum(row["jets"] for row in found["labels"]) == 80
    weights = sum(row["sum_weight"] for row in found["labels"])
    assert weights == pytest.approx(sum(shard.sum_weight for shard in manifest.shards))
    assert found["columns"]["cpf"]["length"] == 5
    assert [source["accepted"] for source in found["sources"]] == [50, 30]
    assert found["skipped_files"] == []


def test_verify(copy, capsys):
    code, out, _ = run(capsys, "verify", copy)
    assert code == 0
    assert "80 jets in 3 shards are as recorded" in out
    shard = next(p for p in copy.glob("file_1.*") if p.suffix in (".arrow", ".lz4"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    code, out, err = run(capsys, "verify", copy)
    assert code == 1
    assert f"the content of '{shard}' has changed since it was written" in out
    assert err.startswith(f"error: '{copy}' is not what its manifest says")
    assert err.count("\n") == 1


def test_verify_names_a_file_that_is_not_whole(copy, capsys):
    (copy / "index.npy").write_bytes((copy / "index.npy").read_bytes()[:-5])
    code, _, err = run(capsys, "verify", copy)
    assert code == 1
    assert "index.npy" in err


@pytest.mark.parametrize("chunk_size", [None, 17])
@pytest.mark.parametrize("layout", ["ArrowDataset", "LZ4Dataset"])
def test_convert_keeps_the_jets(world, tmp_path, capsys, layout, chunk_size):
    config, dataset = world
    target = tmp_path / "deep" / "target"
    sizes = [] if chunk_size is None else ["--chunk-size", chunk_size]
    code, out, err = run(capsys, "convert", dataset.directory, target, "--to", layout, *sizes)
    assert (code, err) == (0, "")
    assert f"80 jets in {3 if chunk_size is None else 5} shards of {layout}" in " ".join(out.split())
    assert [path.name for path in target.parent.iterdir()] == ["target"]
    converted = open_dataset(target, config)
    assert converted.manifest.layout == layout
    assert converted.manifest.digest == dataset.manifest.digest
    assert same(converted.read(0, 80), dataset.read(0, 80))
    np.testing.assert_array_equal(converted.histogram, dataset.histogram)
    assert str(target) in (target / "processed_files.txt").read_text()
    if layout == dataset.manifest.layout and chunk_size is None:
        for path in dataset.directory.iterdir():
            if path.name != "processed_files.txt":
                assert (target / path.name).read_bytes() == path.read_bytes()


def test_there_and_back(world, tmp_path, capsys):
    config, dataset = world
    other = "LZ4Dataset" if dataset.manifest.layout == "ArrowDataset" else "ArrowDataset"
    run(capsys, "convert", dataset.directory, tmp_path / "there", "--to", other)
    run(capsys, "convert", tmp_path / "there", tmp_path / "back", "--to", dataset.manifest.layout)
    for shard in dataset.manifest.shards:
        assert (tmp_path / "back" / shard.file).read_bytes() == (dataset.directory / shard.file).read_bytes()
    assert open_dataset(tmp_path / "back", config).manifest == dataset.manifest


def test_convert_takes_the_record_of_parameters_along(copy, tmp_path, capsys):
    Record({"chunk_size": 30, "seed": 1}, "abc").write(copy)
    run(capsys, "convert", copy, tmp_path / "target", "--to", "ArrowDataset", "--chunk-size", 40)
    assert Record.read(tmp_path / "target") == Record({"chunk_size": 40, "seed": 1}, "abc")


def test_convert_refuses(world, copy, tmp_path, capsys):
    for arguments, sentence in (
        ((copy, copy, "--to", "LZ4Dataset"), "exists: give a directory that does not"),
        ((copy, "--to", "LZ4Dataset"), "convert takes a directory to make and --to LAYOUT"),
        ((copy, tmp_path / "x", "--to", "LZ4Dataset", "--chunk-size", 0), "--chunk-size 0"),
        ((copy, tmp_path / "x", "--in-place"), "--in-place never touches shards"),
        ((tmp_path / "none", tmp_path / "x", "--to", "LZ4Dataset"), "holds no complete training set"),
        ((copy, tmp_path / "x", "--to", "LZ4Dataset", "--config", "jet_class"), "was made with config small"),
    ):
        code, _, err = run(capsys, "convert", *arguments)
        assert code == 1
        assert err.startswith("error: ")
        assert sentence in err
        assert err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_convert_refuses_what_the_layout_cannot_hold(tmp_path, capsys):
    config = small_config(tmp_path, data_precision="float16")
    dataset = build(config, [write_hand_made(tmp_path / "TT.root")], tmp_path / "set")
    code, _, err = run(capsys, "convert", dataset.directory, tmp_path / "x", "--to", "LZ4Dataset")
    assert code == 1
    assert "the LZ4 layout in float16 cannot hold its own number of rows" in err
    run(capsys, "convert", dataset.directory, tmp_path / "x", "--to", "ArrowDataset", "--chunk-size", 4)
    assert open_dataset(tmp_path / "x", config).manifest.digest == dataset.manifest.digest


def test_a_damaged_source_leaves_no_target(copy, tmp_path, capsys):
    shard = next(p for p in copy.glob("file_2.*") if p.suffix in (".arrow", ".lz4"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    code, _, err = run(capsys, "convert", copy, tmp_path / "target", "--to", "LZ4Dataset")
    if code == 0:  # padding of the Arrow format: the jets are whole
        assert run(capsys, "verify", tmp_path / "target")[0] == 0
    else:
        assert err.startswith("error: ")
        assert not (tmp_path / "target").exists()
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_upstream_in_place(upstream, capsys):
    config, dataset, directory = upstream
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    for action in ("info", "verify"):
        code, _, err = run(capsys, action, directory)
        assert code == 1
        assert f"bhive-mltf dataset convert {directory} --in-place --config NAME" in err
    code, out, _ = run(capsys, "convert", directory, "--in-place", "--config", config.source)
    assert code == 0
    assert "manifest.json and index of 80 jets" in " ".join(out.split())
    assert {name: (directory / name).read_bytes() for name in before} == before
    assert same(open_dataset(directory, config).read(0, 80), dataset.read(0, 80))
    assert run(capsys, "verify", directory)[0] == 0
    code, out, _ = run(capsys, "info", directory)
    assert "derived: a set of upstream" in " ".join(out.split())
    assert "nothing to do" in run(capsys, "convert", directory, "--in-place")[1]


@pytest.mark.parametrize("layout", ["ArrowDataset", "LZ4Dataset"])
def test_upstream_to_our_layouts(upstream, tmp_path, capsys, layout):
    config, dataset, directory = upstream
    target = tmp_path / "target"
    code, _, err = run(capsys, "convert", directory, target, "--to", layout, "--config", config.source)
    assert (code, err) == (0, "")
    theirs, ours = open_dataset(directory, config), open_dataset(target, config)
    assert ours.manifest.digest == theirs.manifest.digest
    assert ours.manifest.derived
    assert ours.shard_edges.tolist() == theirs.shard_edges.tolist() == [0, 30, 60, 80]
    assert same(ours.read(0, 80), dataset.read(0, 80))
    np.testing.assert_array_equal(ours.read(25, 35).jet_id, theirs.read(25, 35).jet_id)
    if layout == "LZ4Dataset":
        for k in range(3):
            mine, given = ((d / f"file_{k}.lz4").read_bytes() for d in (target, directory))
            assert lz4.frame.decompress(mine) == lz4.frame.decompress(given)


def test_a_derived_set_in_arrow_keeps_its_config(upstream, tmp_path, capsys):
    config, _, directory = upstream
    run(capsys, "convert", directory, tmp_path / "target", "--to", "ArrowDataset", "--config", config.source)
    other = small_config(tmp_path / "other", dataset="LZ4Dataset", bins_pt=[10, 500])
    code, _, err = run(capsys, "convert", tmp_path / "target", "--in-place", "--config", other.source)
    assert code == 1
    assert "was made with config small" in err
