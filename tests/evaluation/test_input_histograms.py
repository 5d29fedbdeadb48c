import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bhive_mltf.data.block import JetBlock
from bhive_mltf.errors import CorruptFileError, ParameterError
from bhive_mltf.evaluation.inputs import figures
from bhive_mltf.evaluation.inputs import histograms as filling
from bhive_mltf.evaluation.inputs.features import check_parameters, count_workers, features, figure_names
from bhive_mltf.evaluation.inputs.figures import Look, draw_inputs
from bhive_mltf.evaluation.inputs.histograms import write_histograms
from bhive_mltf.testing.jets import write_btag
from tests.helpers.building import build, small_config
from tests.helpers.memory_dataset import SCHEMA, MemoryDataset, make_dataset

fill = filling.input_histograms


def with_features(dataset, **changes):
    """The dataset with other values of some groups."""
    block = dataclasses.replace(dataset.block, features={**dataset.block.features, **changes})
    return dataclasses.replace(dataset, block=block)


def permuted(dataset, seed):
    return dataclasses.replace(dataset, block=dataset.block.take(np.random.default_rng(seed).permutation(len(dataset))))


def test_keys_types_and_shapes_are_upstreams():
    histograms = fill(make_dataset(500), n_bins=20)
    names = [column for group in SCHEMA.groups for column in group.columns]
    assert set(histograms) == {f"{label}/{name}" for label in SCHEMA.truths for name in names}
    for histogram in histograms.values():
        assert (histogram.dtype, histogram.shape) == (np.float32, (2, 22))
        np.testing.assert_allclose(np.diff(histogram[1]), np.diff(histogram[1])[0], rtol=1e-3)


def test_w40_one_binning_for_all_files():
    """Two files whose values do not overlap: each value lies in its bin, with the edges of the whole set."""
    dataset = make_dataset(4000)
    low = np.linspace(0.0, 10.0, 2000) + 0.001
    values = dataset.block.features["global"].copy()
    values[:, 0] = np.concatenate([low, low + 90])
    values[:, 1] = np.concatenate([low + 90, low])
    histograms = fill(with_features(dataset, **{"global": values}), n_bins=50)
    for column in (0, 1):
        name = SCHEMA.groups[0].columns[column]
        centres = histograms[f"isB/{name}"][1]
        edges = (centres[1:] + centres[:-1]) / 2
        for k, label in enumerate(SCHEMA.truths):
            np.testing.assert_array_equal(histograms[f"{label}/{name}"][1], centres)
            mine = values[dataset.block.truth[:, k], column]
            counts = histograms[f"{label}/{name}"][0]
            np.testing.assert_allclose(counts[1:-1], np.histogram(mine, edges.astype(float))[0], atol=1)
            assert counts.sum() == len(mine)
    np.testing.assert_array_equal(histograms["isB/jet_pt"][1], histograms["isB/jet_eta"][1])


@settings(max_examples=15)
@given(st.integers(1, 300), st.integers(0, 5), st.booleans())
def test_w40_the_order_of_files_and_jets_does_not_matter(n_jets, seed, weighted):
    dataset = make_dataset(n_jets, seed=seed)
    one, other = fill(dataset, weighted=weighted), fill(permuted(dataset, seed), weighted=weighted)
    for name, histogram in one.items():
        np.testing.assert_allclose(other[name], histogram, rtol=1e-6)


def test_w40_the_number_of_processes_does_not_matter(monkeypatch):
    monkeypatch.setattr(filling, "_MIN_PIECE", 100)
    monkeypatch.setattr(filling, "BLOCK_JETS", 64)
    dataset = make_dataset(450)
    weight = np.random.default_rng(3).random(450).astype(np.float32)
    dataset = dataclasses.replace(dataset, block=dataclasses.replace(dataset.block, weight=weight))
    assert len(filling.pieces(len(dataset))) == 5
    one, two = (fill(dataset, n_workers=n, weighted=True) for n in (1, 2))
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)


def test_pieces_cover_the_set_and_are_not_too_many():
    for n_jets in (0, 1, 65_536, 65_537, 100_000_000):
        work = filling.pieces(n_jets)
        assert sum(map(len, work)) == n_jets
        assert len(work) <= 256
        assert all(a.stop == b.start for a, b in itertools.pairwise(work))


def test_counts_per_label_of_jets_with_several_labels():
    dataset = make_dataset(600)
    truth = np.random.default_rng(1).random((600, 5)) < 0.4
    dataset = dataclasses.replace(dataset, block=dataclasses.replace(dataset.block, truth=truth))
    histograms = fill(dataset)
    for k, label in enumerate(SCHEMA.truths):
        assert histograms[f"{label}/n"][0].sum() == truth[:, k].sum()
        assert histograms[f"{label}/mass"][0].sum() == dataset.block.counts["vtx"][truth[:, k]].sum()


def test_zeros_of_real_candidates_are_kept_padding_is_not():
    dataset = make_dataset(300)
    values = dataset.block.features["cpf"].copy()
    values[:, 4] = 0.0
    histograms = fill(with_features(dataset, cpf=values))
    total = sum(histograms[f"{label}/d0"][0] for label in SCHEMA.truths)
    assert total.sum() == dataset.block.counts["cpf"].sum() == total.max()


def test_weighted_histograms_are_sums_of_weights():
    dataset = make_dataset(900)
    plain, weighted = fill(dataset), fill(dataset, weighted=True)
    weight, is_b = dataset.block.weight, dataset.block.truth[:, 0]
    assert weighted["isB/jet_pt"][0].sum() == pytest.approx(weight[is_b].sum())
    assert weighted["isB/px"][0].sum() == pytest.approx((weight * dataset.block.counts["cpf"])[is_b].sum())
    np.testing.assert_array_equal(weighted["isB/px"][1], plain["isB/px"][1])


def test_values_that_are_not_numbers():
    dataset = make_dataset(200)
    values = dataset.block.features["global"].copy()
    values[0, 0], values[1, 0] = np.nan, np.inf
    histograms = fill(with_features(dataset, **{"global": values}))
    total = sum(histograms[f"{label}/jet_pt"][0] for label in SCHEMA.truths)
    assert total.sum() == 199
    assert total[-1] >= 1
    assert np.isfinite(histograms["isB/jet_pt"][1]).all()


def test_w40_both_layouts_give_the_same(tmp_path):
    path = str(write_btag(tmp_path / "TT.root", 700, 3))
    sets = [
        build(small_config(tmp_path / layout, dataset=layout), [path], tmp_path / f"set_{layout}", chunk_size=300)
        for layout in ("ArrowDataset", "LZ4Dataset")
    ]
    arrow, lz4 = map(fill, sets)
    assert list(arrow) == list(lz4)
    for name, histogram in arrow.items():
        np.testing.assert_array_equal(lz4[name], histogram)


@pytest.mark.parametrize(("n_bins", "n_workers", "text"), [(0, 1, "--Nbins 0"), (5, 0, "--n-workers 0"), (5, -2, "-2")])
def test_parameters_out_of_range(n_bins, n_workers, text):
    with pytest.raises(ParameterError, match=text):
        check_parameters(n_bins, n_workers)
    with pytest.raises(ParameterError, match=text):
        fill(make_dataset(5), n_bins=n_bins, n_workers=n_workers)


def test_workers(monkeypatch):
    assert count_workers(3) == 3
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert count_workers(-1) == 7
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert count_workers(-1) == 1


def test_columns_of_one_name_in_two_groups_keep_apart():
    groups = [SimpleNamespace(name="global", columns=("pt", "eta")), SimpleNamespace(name="cpf", columns=("pt", "d0"))]
    assert [f.name for f in features(groups)] == ["global_pt", "eta", "cpf_pt", "d0"]
    assert [f.position for f in features(groups)] == [0, 1, 0, 1]


def test_names_of_figures_are_upstreams():
    chosen = features([SimpleNamespace(name="global", columns=("jet_pt",))])
    assert figure_names(chosen, ["isB"], ylog=True, weighted=True) == {
        "jet_pt_all": "jet_pt/all_weight_ylog.png",
        "jet_pt_isB": "jet_pt/isB_weight_ylog.png",
    }
    assert figure_names(chosen, ["isB"], ylog=False, weighted=False)["jet_pt_isB"] == "jet_pt/isB.png"


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    path = tmp_path_factory.mktemp("histograms") / "input_histogram.npz"
    dataset = make_dataset(400)
    values = dataset.block.features["cpf"].copy()
    values[:, 0] = np.random.default_rng(2).normal(0, 3, len(values))
    write_histograms(fill(with_features(dataset, cpf=values)), path)
    return path


@pytest.mark.parametrize("look", [Look(), pytest.param(Look(ylog=False, weighted=True), marks=pytest.mark.long)])
def test_figures_of_a_feature(filled, tmp_path, look):
    chosen = [feature for feature in features(SCHEMA.groups) if feature.name in {"jet_pt", "mass"}]
    draw_inputs(filled, chosen, SCHEMA.truths, tmp_path, look=look)
    names = figure_names(chosen, SCHEMA.truths, ylog=look.ylog, weighted=look.weighted).values()
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert found == sorted(names)
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in names)


def test_legends_say_what_is_outside_and_do_not_cover_the_bins(filled):
    [feature] = [feature for feature in features(SCHEMA.groups) if feature.name == "px"]
    histograms = figures._read(filled, feature, SCHEMA.truths)
    for figure in (
        figures.overlay_figure(feature, histograms, Look()),
        figures.label_figure(feature, histograms, 0, Look()),
        figures.label_figure(feature, histograms, 0, Look(ylog=False)),
    ):
        axes = figure.axes[0]
        figure.canvas.draw()
        legend = axes.get_legend().get_window_extent()
        highest = max(float(np.nanmax(patch.get_data().values)) for patch in axes.patches)
        assert axes.transData.transform((0, highest))[1] <= legend.y0
    text = axes.get_legend().get_texts()[0].get_text()
    counts = histograms["isB"][0]
    assert text.startswith(f"isB: {counts.sum():.0f} entries")
    assert "% below and" in text, text
    assert axes.get_xlabel() == "px"
    assert axes.get_ylabel().startswith("candidates / ")


def test_labels_without_entries_are_drawn_as_such(filled):
    [feature] = [feature for feature in features(SCHEMA.groups) if feature.name == "px"]
    histograms = figures._read(filled, feature, SCHEMA.truths)
    assert not histograms["isTau"][0].any()
    figure = figures.label_figure(feature, histograms, 4, Look())
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == "isTau: no entries"
    overlay = figures.overlay_figure(feature, histograms, Look())
    assert "isTau" not in [text.get_text() for text in overlay.axes[0].get_legend().get_texts()]


def test_flags_have_a_tick_each():
    dataset = make_dataset(300)
    values = dataset.block.features["vtx"] % 2
    [feature] = [feature for feature in features(SCHEMA.groups) if feature.name == "mass"]
    histograms = fill(with_features(dataset, vtx=values))
    mine = {label: histograms[f"{label}/mass"].astype(float) for label in SCHEMA.truths}
    axes = figures.overlay_figure(feature, mine, Look()).axes[0]
    assert axes.get_xticks().tolist() == [0, 1]
    assert axes.get_xlim() == (-0.5, 1.5)
    assert axes.get_ylabel() == "fraction of vertices"


def test_a_file_that_is_not_whole(tmp_path, filled):
    broken = tmp_path / "input_histogram.npz"
    broken.write_bytes(filled.read_bytes()[:100])
    chosen = features(SCHEMA.groups)
    with pytest.raises(CorruptFileError, match="no histograms of jet_pt .* run InputHistogrammerTask again"):
        draw_inputs(broken, chosen, SCHEMA.truths, tmp_path, look=Look())
    with pytest.raises(CorruptFileError, match="no histograms of jet_pt"):
        draw_inputs(filled, chosen, ["isOther"], tmp_path, look=Look())


def test_memory_dataset_is_what_the_tests_think():
    assert isinstance(make_dataset(3).block, JetBlock)
    assert isinstance(make_dataset(3), MemoryDataset)
