"""The rooms of the house: imports go one way, and heavy ones happen where they are used."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "bhive_mltf"

# what a room may import, besides itself and `interface`
BASE = {"errors", "files", "gc_freeze", "child_process", "compat"}
LIBRARY = {*BASE, "config", "interface"}
ALLOWED = {
    "errors": set(),
    "gc_freeze": set(),
    "child_process": set(),
    "compat": {"errors"},  # other packages in other versions
    "files": {"errors"},
    "config": {"errors", "files"},
    "interface": set(),
    "data": LIBRARY,
    "models": {*LIBRARY, "data"},
    "ranks": {*LIBRARY, "data", "models"},
    "attacks": {"errors", "interface", "data", "models"},
    "testing": {*LIBRARY, "data", "slurm"},  # used by cli, tests, docs and benchmarks only
    "tracking": BASE,
    "training": {*LIBRARY, "data", "models", "ranks", "attacks", "tracking"},
    "evaluation": {*LIBRARY, "data", "models", "ranks", "attacks", "training"},
    "slurm": {*BASE, "config", "tracking", "ranks"},
    "cli": {*LIBRARY, "data", "models", "ranks", "training", "evaluation", "tracking", "slurm", "testing"},
    "gateway": {*LIBRARY, "data", "models", "ranks", "attacks", "training", "evaluation", "tracking", "slurm"},
    "law": {*LIBRARY, "data", "models", "ranks", "attacks", "training", "evaluation", "tracking", "slurm"},
}


# What is not yet as it should be: rows are only ever taken out. A row that is no longer needed fails too.
ROOMS_WITH_CIRCLES = set()
CROWDED_FOLDERS = set()
LONG_FUNCTIONS = set()
MOST_MODULES, MOST_LINES, LONGEST_FUNCTION = 14, 400, 80


@functools.cache
def nodes_of(path):
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imports_of(path):
    for node in nodes_of(path):
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
            if parts[0] == "bhive_mltf" and len(parts) > 1 and parts[1] in {*ALLOWED, "gateway"}:
                if parts[1] != room and parts[1] not in ALLOWED.get(room, ()):
                    wrong.append(f"{path.relative_to(REPOSITORY)}: {name}")
            elif parts[0] in ("tasks", "workflows") or (parts[0] in ("law", "luigi") and room != "law"):
                wrong.append(f"{path.relative_to(REPOSITORY)}: {name}")
    assert wrong == []


def modules():
    """Name -> file of each module; a package has the name of its folder."""
    return {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }


def import_graph():
    """Module -> modules that it imports: at the top, inside functions and for type checkers alike.

    `from package import name` is an import of the module `package.name` where there is one, else of the package.
    """
    files, graph = modules(), {}
    for module, path in files.items():
        graph[module] = set()
        for name in imports_of(path):
            while name and name not in files:
                name = name.rpartition(".")[0]
            if name and name != module:
                graph[module].add(name)
    return graph


def circles(graph):
    """The strongly connected parts of a graph with more than one member (Kosaraju)."""
    order, seen = [], set()
    for start in graph:
        stack = [(start, iter(graph[start]))] if start not in seen else []
        seen.add(start)
        while stack:
            node, following = stack[-1]
            step = next((one for one in following if one not in seen), None)
            if step is None:
                order.append(node)
                stack.pop()
            else:
                seen.add(step)
                stack.append((step, iter(graph[step])))
    backward = {node: {other for other in graph if node in graph[other]} for node in graph}
    found, taken = [], set()
    for start in reversed(order):
        part, stack = set(), [start] if start not in taken else []
        while stack:
            node = stack.pop()
            if node not in taken:
                taken.add(node)
                part.add(node)
                stack += backward[node] - taken
        if len(part) > 1:
            found.append(sorted(part))
    return found


def test_the_search_finds_circles():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"f", "d"}, "f": {"g"}, "g": {"e"}}
    assert sorted(circles(graph)) == [["b", "c"], ["e", "f", "g"]]


def test_no_circle_of_files():
    found = circles(import_graph())
    rooms = {module.split(".")[1] for circle in found for module in circle}
    assert rooms == ROOMS_WITH_CIRCLES, "\n".join(" <-> ".join(circle) for circle in found)


def test_no_folder_is_crowded():
    numbers = {}
    for path in PACKAGE.rglob("*.py"):
        if path.stem not in ("__init__", "__main__"):
            folder = str(path.parent.relative_to(PACKAGE))
            numbers[folder] = numbers.get(folder, 0) + 1
    assert {folder for folder, number in numbers.items() if number > MOST_MODULES} == CROWDED_FOLDERS


def test_no_module_and_no_function_is_long():
    lines, functions = set(), set()
    for path in PACKAGE.rglob("*.py"):
        text, name = path.read_text(encoding="utf-8"), str(path.relative_to(PACKAGE))
        if len(text.splitlines()) >= MOST_LINES:
            lines.add(name)
        for node in nodes_of(path):
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if is_function and node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION:
                functions.add(f"{name}:{node.name}")
    assert (lines, functions) == (set(), LONG_FUNCTIONS)


def test_all_packages_are_in_the_wheel():
    listed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {".".join(p.parent.relative_to(REPOSITORY).parts) for p in PACKAGE.rglob("__init__.py")}
    # mapped from the top-level `configs/`
    assert set(listed) == there | {f"bhive_mltf.configs{name}" for name in ("", ".facility", ".gateway")}


LOOK = """
import os, sys
os.environ["DATA_PATH"] = sys.argv[1]
from bhive_mltf.law.tasks.plotting import ROCCurveTask

def walk(task):
    task.output()
    needed = task.requires()
    for one in needed.values() if isinstance(needed, dict) else [needed]:
        walk(one)

sample = "examples/btag_sample/"
options = {"config": "offline_run3", "model_name": "DeepJet", "dataset_version": "a", "test_dataset_version": "b"}
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
