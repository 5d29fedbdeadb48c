"""The rooms of the house: imports go one way, and heavy ones happen where they are used."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "bhive_mltf"

# what a room may import, besides itself and `interface`
BASE = {"errors", "files", "gc_freeze"}
LIBRARY = {*BASE, "config", "interface"}
ALLOWED = {
    "errors": set(),
    "gc_freeze": set(),
    "files": {"errors"},
    "config": {"errors", "files"},
    "interface": set(),
    "data": LIBRARY,
    "models": {*LIBRARY, "data"},
    "ranks": {*LIBRARY, "data", "models"},
    "attacks": {"errors", "interface", "data", "models"},
    "testing": {*LIBRARY, "data", "slurm"},
    "tracking": BASE,
    "training": {*LIBRARY, "data", "models", "ranks", "attacks", "tracking"},
    "evaluation": {*LIBRARY, "data", "models", "ranks", "attacks", "training"},
    "slurm": {*BASE, "config", "tracking", "ranks"},
    "cli": {*LIBRARY, "data", "models", "ranks", "training", "evaluation", "tracking", "slurm", "testing"},
    "law": {*LIBRARY, "data", "models", "ranks", "attacks", "training", "evaluation", "tracking", "slurm"},
}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_between_rooms_go_one_way():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for name in imports_of(path):
            parts = name.split(".")
            if parts[0] == "bhive_mltf" and len(parts) > 1 and parts[1] in ALLOWED:
                if parts[1] != room and parts[1] not in ALLOWED[room]:
                    wrong.append(f"{path.relative_to(REPOSITORY)}: {name}")
            elif parts[0] in ("tasks", "workflows") or (parts[0] in ("law", "luigi") and room != "law"):
                wrong.append(f"{path.relative_to(REPOSITORY)}: {name}")
    assert wrong == []


def test_all_packages_are_in_the_wheel():
    listed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {".".join(p.parent.relative_to(REPOSITORY).parts) for p in PACKAGE.rglob("__init__.py")}
    assert set(listed) == there


LOOK = """
import os, sys
os.environ["DATA_PATH"] = sys.argv[1]
from bhive_mltf.law import messages
from bhive_mltf.law.tasks.plotting import ROCCurveTask

def walk(task):
    task.output()
    needed = task.requires()
    for one in needed.values() if isinstance(needed, dict) else [needed]:
        walk(one)

sample = "examples/btag_sample/"
options = {"config": "offline_run3", "model_name": "DeepJet", "dataset_version": "a", "test_dataset_version": "b"}
with messages.looking():
    walk(ROCCurveTask(filelist=sample + "train.txt", test_filelist=sample + "test.txt", **options))
heavy = {"torch", "mlflow", "uproot", "awkward", "pyarrow", "matplotlib", "sklearn", "pandas"} & set(sys.modules)
sys.exit(", ".join(sorted(heavy)) or 0)
"""


def test_w28_print_status_needs_no_heavy_import(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "module", ["bhive_mltf", "bhive_mltf.config", "bhive_mltf.tracking", "bhive_mltf.models.registry"]
)
def test_light_modules(module):
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'mlflow', 'uproot', 'pyarrow', 'law'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


def test_tests_that_the_documentation_names_exist():
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "docs").glob("*.md")))
    named = set(re.findall(r"::(test_\w+)", text))
    tests = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "tests").rglob("test_*.py"))
    assert named
    assert named - set(re.findall(r"def (test_\w+)", tests)) == set()
