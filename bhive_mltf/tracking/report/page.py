"""The report of a training as one HTML file: no network, no script; for screens from 320 px on and for print."""

from __future__ import annotations

import base64
import json
import shlex
import time
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from bhive_mltf.errors import ParameterError
from bhive_mltf.files import atomic
from bhive_mltf.tracking.report.chart import chart, number
from bhive_mltf.tracking.report.contents import Contents, read
from bhive_mltf.tracking.report.emissions import emissions
from bhive_mltf.tracking.store import view_command

FILE_NAME = "report.html"
_LARGEST_FIGURE = 2_000_000  # bytes
_STYLE = """
:root{color-scheme:light}*{box-sizing:border-box}
body{font:16px/1.45 system-ui,sans-serif;color:#1a1a1a;background:#fff;max-width:1100px;margin:0 auto;padding:1rem}
h1{font-size:1.4rem;overflow-wrap:anywhere}h2{font-size:1.15rem;border-bottom:1px solid #bbb;margin-top:2rem}
h3{font-size:1rem;margin:1.2rem 0 .4rem}
.grid-of{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(320px,100%),1fr));gap:1rem}
table+.grid-of{margin-top:1.2rem}
figure{margin:0;break-inside:avoid}figcaption{font-size:.9rem;font-weight:600}
svg,img{width:100%;height:auto;display:block}svg text{font-size:11px;fill:#333}
.frame{fill:none;stroke:#888}.grid{stroke:#e2e2e2}
.legend{display:block;font-weight:400}.legend span{margin-right:.8em;white-space:nowrap;display:inline-block}
.legend svg{display:inline-block;width:1.7em;height:.45em;margin-right:.3em;vertical-align:middle}
table{border-collapse:collapse;width:100%;table-layout:fixed;font-size:.9rem}
th,td{text-align:left;vertical-align:top;padding:.25rem .5rem .25rem 0;border-bottom:1px solid #e2e2e2}
th,td,code{overflow-wrap:anywhere}
th{width:38%;font-weight:600}.keys th{width:75%}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f3f3f3;padding:.6rem}
@media print{body{max-width:none;padding:0;font-size:11pt}h2{break-after:avoid}
.grid-of{grid-template-columns:1fr 1fr}img{width:auto;max-width:100%;max-height:76mm}
*{print-color-adjust:exact}}
"""
_EPOCHS = (
    ("Loss", {"training": "Training Loss", "validation": "Validation Loss"}),
    ("Accuracy", {"training": "Training Accuracy", "validation": "Validation Accuracy"}),
)
_STEPS = (
    ("Training loss per interval", "train/loss"),
    ("Learning rate", "train/lr"),
    ("Throughput, jets/s", "train/jets_per_s"),
    ("Wait for the loader, share of the time", "train/loader_wait"),
    ("Norm of the gradient", "train/gradient_norm"),
)
_SYSTEM = (
    ("Processors, %", "cpu_utilization_percentage"),
    ("Processors, this job (100 is one core), %", "process_cpu_utilization_percentage"),
    ("Memory, %", "system_memory_usage_percentage"),
    ("Memory, this job, MB", "process_memory_megabytes"),
    ("GPU load, %", "utilization_percentage"),
    ("GPU memory, %", "memory_usage_percentage"),
    ("GPU power, W", "power_usage_watts"),
    ("GPU temperature, °C", "temperature_celsius"),
)


def write(directory: Path) -> Path:
    """Write the report of the training in a directory beside its outputs; the file."""
    path = directory / FILE_NAME
    atomic.write_text(path, render(read(directory)))
    return path


def render(contents: Contents) -> str:
    """The whole page."""
    name = _name(contents)
    sections = [
        _section("Summary", _table(_summary(contents))),
        _section("Curves", _curves(contents)),
        _section("Evaluation", _evaluation(contents)),
        _section("Speed", _steps(contents)),
        _section("System", _system(contents)),
        _section("Data", _datasets(contents)),
        _section("Parameters", _table({key: _plain(value) for key, value in contents.parameters.items()})),
        _section("Provenance", _provenance(contents)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)}</title><style>{_STYLE}</style></head>"
        f"<body><main><h1>{escape(name)}</h1>{''.join(sections)}</main></body></html>\n"
    )


def _name(contents: Contents) -> str:
    if not contents.model:
        return f"Training {contents.directory.name}"
    return f"Training of {contents.model}" + (f" on {contents.dataset}" if contents.dataset else "")


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _table(rows: Mapping[str, str], kind: str = "") -> str:
    cells = (
        f'<tr><th scope="row">{escape(key)}</th><td>{escape(value)}</td></tr>' for key, value in rows.items() if value
    )
    body = "".join(cells)
    return f'<table class="{kind}"><tbody>{body}</tbody></table>' if body else ""


def _summary(contents: Contents) -> dict[str, str]:
    series, start, energy = contents.series, contents.start, contents.energy()
    losses = [(value, step) for step, _, value in series.get("Validation Loss", []) if value == value]  # noqa: PLR0124
    best = min(losses, default=None)
    ends = [points[-1][1] for name, points in series.items() if name.startswith(("train/", "Training"))]
    return {
        "Status": contents.status,
        "Begun": _date(start) if start else "",
        "Took": f"{(max(ends) - start) / 60:,.1f} min, pauses included" if start and ends else "",
        "Epochs": str(len(series.get("Training Loss", []))) if "Training Loss" in series else "",
        "Best validation loss": f"{best[0]:.5f} at epoch {best[1] + 1}" if best else "",
        "Test loss": _test_loss(contents),
        "Test accuracy": _last(contents, "Test Accuracy"),
        "Energy of the GPUs": f"{energy:,.1f} Wh, by the counters of this job's GPUs" if energy is not None else "",
        "Emissions": _emissions(energy),
        "Warning": contents.tags.get("warning", ""),
    }


def _test_loss(contents: Contents) -> str:
    found = _last(contents, "Test Loss")
    is_weighted = contents.parameters.get("loss_weighting") is True
    note = ", the mean of all jets: those of training and validation are weighted"
    return found + note if found and is_weighted else found


def _emissions(energy: float | None) -> str:
    if energy is None:
        return ""
    try:
        return str(emissions(energy))
    except ParameterError as error:  # the report is written at the end of a training, which a variable must not undo
        return f"not known: {error}"


def _last(contents: Contents, name: str) -> str:
    points = contents.series.get(name)
    return f"{points[-1][2]:.5f}" if points else ""


def _curves(contents: Contents) -> str:
    charts = (
        chart(title, {label: _over_steps(contents, key, 1) for label, key in lines.items()}, "epoch")
        for title, lines in _EPOCHS
    )
    return _grid(charts)


def _steps(contents: Contents) -> str:
    return _grid(chart(title, {key: _over_steps(contents, key)}, "step") for title, key in _STEPS)


def _over_steps(contents: Contents, key: str, first: int = 0) -> list[tuple[float, float]]:
    """Points of a metric; `first` is what people call step 0."""
    return [(float(step + first), value) for step, _, value in contents.series.get(key, [])]


def _system(contents: Contents) -> str:
    start = contents.start or 0.0
    charts = []
    for title, ending in _SYSTEM:
        lines = {}
        for key, points in contents.series.items():
            *places, name = key.removeprefix("system/").split("/")
            gpu = name.removesuffix(f"_{ending}") if name.startswith("gpu_") else ""
            if key.startswith("system/") and name in (ending, f"{gpu}_{ending}"):
                label = " ".join([*(places or ["first node"]), gpu.replace("_", " ")]).strip()
                lines[label] = [((when - start) / 60, value) for _, when, value in points]
        charts.append(chart(title, dict(sorted(lines.items())), "minutes"))
    return _grid(charts)


def _evaluation(contents: Contents) -> str:
    areas = {
        key.removeprefix("auc/"): f"{points[-1][2]:.4f}"
        for key, points in contents.series.items()
        if key.startswith("auc/")
    }
    table = f"<h3>Area under the ROC curve</h3>{_table(areas, 'keys')}" if areas else ""
    # the curves of loss and accuracy are on this page already
    return table + _grid(_figure(folder, path) for folder, path in contents.figures if path.stem not in ("loss", "acc"))


def _figure(folder: str, path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError:
        return ""
    if len(data) > _LARGEST_FIGURE:
        return ""
    place = "" if folder == "figures" or path.stem.startswith(Path(folder).name[:4]) else f"{Path(folder).name}: "
    title = f"{place}{path.stem}".replace("_", " ")
    image = base64.b64encode(data).decode()
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<img alt="{escape(title)}" src="data:image/png;base64,{image}"></figure>'
    )


def _grid(parts: Iterable[str]) -> str:
    body = "".join(parts)
    return f'<div class="grid-of">{body}</div>' if body else ""


def _datasets(contents: Contents) -> str:
    blocks = []
    for dataset in contents.datasets:
        numbers = {key: _plain(value) for key, value in (dataset.get("profile") or {}).items()}
        rows = {"digest": dataset["digest"], "place": dataset["source"], **numbers}
        blocks.append(f"<h3>{escape(dataset['context'])}: {escape(dataset['name'])}</h3>{_table(rows)}")
    return "".join(blocks)


def _provenance(contents: Contents) -> str:
    facts = contents.environment
    rows = {"directory": str(contents.directory)}
    if contents.run is not None:
        rows |= {"MLflow run": contents.run.run_id, "MLflow page": view_command(contents.run)}
    for topic in ("git", "machine", "system", "packages"):
        rows |= {f"{topic} {key}": _plain(value) for key, value in facts.get(topic, {}).items()}
    rows |= {key: value for key, value in sorted(contents.tags.items()) if key.startswith("slurm_")}
    command = str(facts.get("command", ""))
    where = facts.get("machine", {}).get("directory", "")
    again = f"cd {shlex.quote(where)} && {command}" if where else command
    return _table(rows) + (f"<h3>The command of this training</h3><pre>{escape(again)}</pre>" if command else "")


def _plain(value: object) -> str:
    if isinstance(value, float):
        return number(value)
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
