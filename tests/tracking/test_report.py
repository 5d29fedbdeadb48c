"""The page of a training: complete, self-contained, and right about its numbers."""

import itertools
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import mlflow
import pytest

from bhive_mltf.cli import main
from bhive_mltf.tracking import attach, prepare
from bhive_mltf.tracking.connection import connect
from bhive_mltf.tracking.journal import Journal
from bhive_mltf.tracking.report import contents, page
from bhive_mltf.tracking.report.chart import chart
from tests.gateway import chromium

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360000002000154a24f5d00000000"
    "49454e44ae426082"
)
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Tags of a page, checked to be closed in order, and its text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


def test_the_report_is_an_artifact_that_stands_alone(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    directory = tmp_path / "training"
    run_id = prepare(directory, data_path=tmp_path, run_name="t").run_id
    record = {"generation": "1", "parameters": {"model_name": "<script>alert(1)</script>", "learning_rate": 0.001}}
    (directory / "parameters.json").write_text(json.dumps(record))
    (directory / "roc ttbar.png").write_bytes(PIXEL)
    with attach(directory) as run:
        for epoch in range(3):
            run.metrics({"Training Loss": 1.0 - 0.1 * epoch, "Validation Loss": 0.9 - 0.1 * epoch}, epoch)
        run.metrics({"train/jets_per_s": 4e4, "train/loader_wait": 0.1}, 1)
        run.metrics({"system/cpu_utilization_percentage": 50.0, "system/n2/gpu_0_power_usage_watts": 250.0}, 0)
        run.metrics({"auc/ttbar/b vs light": 0.9123}, 0, of="test")
        run.artifact(directory / "roc ttbar.png", "figures/roc")
        run.dataset(name="v1", digest="ab" * 32, source="/data/v1", context="training", profile={"n_jets": 1000})
        run.json({"command": "law run TrainingTask", "machine": {"directory": "/my data"}}, "environment.json")
        run.report()
        run.finish("FINISHED")
    kept = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="report.html", tracking_uri=server)
    text = Path(kept).read_text()
    assert text == (directory / "report.html").read_text()
    found = Page(text)
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "link", "iframe"})
    assert [value[:5] for _, attrs in found.tags for name, value in attrs.items() if name in ("src", "href")] == [
        "data:"
    ]
    assert not re.search(r"url\(|@import", text)
    for words in (
        "<script>alert(1)</script>",
        "0.70000 at epoch 3",
        "ttbar/b vs light",
        "0.9123",
        "ab" * 32,
        "cd '/my data' && law run TrainingTask",
        run_id,
    ):
        assert words in found.text
    titles = [attrs["aria-label"] for tag, attrs in found.tags if tag == "svg" and "role" in attrs]
    assert "Loss: training ends at 0.8, validation ends at 0.7" in titles
    assert "GPU power, W: n2 gpu 0 ends at 250" in titles
    assert connect(server).get_run(run_id).info.status == "FINISHED"


def test_the_command_writes_a_report_for_each_training(tmp_path, data_path, capsys):
    for name in ("one", "two"):
        prepare(data_path / name, data_path=data_path, run_name=name)
    assert main(["tracking", "report", str(data_path)]) == 0
    assert capsys.readouterr().out.split("\n") == [str(data_path / name / "report.html") for name in ("one", "two")] + [
        ""
    ]
    assert "one" in Page((data_path / "one/report.html").read_text()).text
    assert main(["tracking", "report", str(tmp_path / "data path/none")]) == 1
    assert "holds no training" in capsys.readouterr().err


def test_the_title_names_model_and_training_set(tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps({"model_name": "DeepJet", "dataset": "/data/hlt/v7"}))
    assert "<h1>Training of DeepJet on v7</h1>" in page.write(tmp_path).read_text()


@pytest.mark.parametrize("is_weighted", [True, False])
def test_a_loss_that_is_not_weighted_beside_weighted_ones_says_so(tmp_path, is_weighted):
    (tmp_path / "parameters.json").write_text(json.dumps({"parameters": {"loss_weighting": is_weighted}}))
    Journal(tmp_path).metrics({"Test Loss": 1.16}, 0, 1000)
    text = Page(page.write(tmp_path).read_text()).text
    assert ("1.16000, the mean of all jets" in text) is is_weighted


def test_a_training_of_which_nothing_is_known_has_a_page(tmp_path):
    assert "Summary" not in Page(page.write(tmp_path).read_text()).text


def test_values_that_are_no_numbers_leave_the_page_whole(tmp_path):
    journal = Journal(tmp_path)
    for step, loss in enumerate((math.nan, 0.5, math.inf)):
        journal.metrics({"Validation Loss": loss, "train/loss": math.nan}, step, 1000)
    assert "0.50000 at epoch 2" in Page(page.write(tmp_path).read_text()).text


@pytest.mark.parametrize(
    ("counts", "total"), [([0, 5, 9], 9.0), ([0, 5, 0, 2, 0, 4], 11.0), ([3, 3], 3.0), ([0.0], 0.0)]
)
def test_energy_is_the_sum_over_all_starts(tmp_path, counts, total):
    journal = Journal(tmp_path)
    for step, count in enumerate(counts):
        journal.metrics({"system/gpu_0_energy_watt_hours": count, "system/n2/gpu_0_energy_watt_hours": 1.0}, step, 0)
    assert contents.read(tmp_path).energy() == total + 1.0


def test_a_training_without_gpus_has_no_energy(tmp_path):
    assert contents.read(tmp_path).energy() is None


def drawn(figure, mark="stroke-width"):
    svg = ET.fromstring(figure[figure.index("<svg") : figure.index("</svg>") + 6])
    path = next(element.get("d") for element in svg if element.get(mark))
    return [tuple(map(float, pair.split())) for pair in path[1:].rstrip("Z").split("L")]


def test_a_chart_keeps_order_and_proportion():
    places = drawn(chart("t", {"a": [(0, 0.0), (1, 1.0), (4, 0.5)]}, "x"))
    assert places[1][0] - places[0][0] == pytest.approx((places[2][0] - places[0][0]) / 4, abs=0.2)
    assert places[0][1] - places[1][1] == pytest.approx(2 * (places[2][1] - places[1][1]), abs=0.2)


def test_a_long_line_keeps_its_peaks():
    points = [(float(i), 0.0) for i in range(10_000)]
    points[7_777] = (7_777.0, 5.0)
    figure = chart("t", {"a": points}, "x")
    assert len(drawn(figure)) == 200
    # in the band behind the line
    band = drawn(figure, "fill-opacity")
    assert len(band) == 400
    assert max(y for _, y in band) - min(y for _, y in band) > 100


def test_lines_of_one_colour_differ_in_the_legend():
    figure = chart("t", {f"gpu {number}": [(0, 1.0), (1, 2.0)] for number in range(12)}, "x")
    legend = figure[: figure.index("</figcaption>")]
    looks = re.findall(r'stroke="([^"]*)" stroke-width="1.5" stroke-dasharray="([^"]*)"', legend)
    assert len(set(looks)) == 12


def test_a_line_of_one_point_and_one_of_none():
    assert "<circle" in chart("t", {"a": [(0, 1.0)], "b": []}, "x")
    assert chart("t", {"a": [(0, math.nan)]}, "x") == ""


@pytest.mark.long
def test_the_page_in_a_browser(tmp_path):
    """No overflow from 320 px on, nothing that axe finds, nothing loaded, and pages of paper."""
    chromium.check()
    from axe_playwright_python.sync_playwright import Axe

    journal = Journal(tmp_path)
    for step in range(300):
        loads = {
            f"system/node{n}.cern.ch/gpu_{g}_utilization_percentage": 90.0 + g for n in (1, 2, 3) for g in range(4)
        }
        journal.metrics({"train/jets_per_s": 1e5 + step, "Training Loss": 1 / (1 + step), **loads}, step, step * 60_000)
    journal.metrics({f"auc/ttbar/{'long' * 20}": 0.9}, 0, 0, of="test")
    (tmp_path / "roc.png").write_bytes(PIXEL)
    journal.append("artifact", path=str(tmp_path / "roc.png"), folder="figures/roc")
    command = f"law run TrainingTask --model-kwargs '{'x' * 200}'"
    journal.append("text", file="environment.json", text=json.dumps({"command": command, "git": {"commit": "0" * 40}}))
    record = {"parameters": {"model_name": "Model" * 20, "a_parameter_with_a_long_name": ["value"] * 50}}
    (tmp_path / "parameters.json").write_text(json.dumps(record))
    address = page.write(tmp_path).as_uri()
    with chromium.launched() as browser:
        for scheme, width in itertools.product(("light", "dark"), (320, 360, 1280)):
            tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            asked = []
            tab.on("request", lambda request, asked=asked: asked.append(request.url))
            tab.goto(address)
            assert [url for url in asked if not url.startswith("data:")] == [address]
            edges = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
            assert tab.evaluate(edges) == [width, width]
            smallest = (
                "Math.min(...[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height))"
            )
            assert tab.evaluate(smallest) >= 10
            assert [found["id"] for found in Axe().run(tab).response["violations"]] == []
            tab.close()
        tab = browser.new_page()
        tab.goto(address)
        tab.pdf(path=tmp_path / "page.pdf", format="A4")
    assert (tmp_path / "page.pdf").read_bytes().count(b"/Type /Page\n") > 1
