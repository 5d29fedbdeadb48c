"""`bhive_mltf.law` as others use it: mixins and workflows beside task classes of their own."""

import ast
import subprocess
import sys

import pytest

from tests.helpers.commands import REPOSITORY, Sandbox

LAW = REPOSITORY / "bhive_mltf/law"
FOREIGN = """
import importlib
import os

import law
import luigi

for name in {modules}:
    importlib.import_module(f"bhive_mltf.law.{{name}}")
from bhive_mltf.law import SlurmMixin
from bhive_mltf.law.parameters import DatasetDependency


class Base(law.Task):
    exclude_index = True

    def store_parts(self):
        return (self.task_family,)

    def local_path(self, *path):
        return "/".join((os.getcwd(), *self.store_parts(), *path))


class TrainingTask(SlurmMixin, DatasetDependency, Base):
    lepton = luigi.Parameter(default="muon")

    def output(self):
        return law.LocalFileTarget(self.local_path("model.txt"))

    def run(self):
        self.output().dump(self.lepton, formatter="text")
"""


def modules():
    return sorted(path.stem for path in LAW.glob("*.py") if path.stem not in ("__init__", "plot_after_job"))


def test_the_package_imports_no_task_class():
    found = []
    for path in LAW.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [(path.name, name) for name in names if name.startswith("bhive_mltf.law.tasks")]
            if isinstance(node, ast.ImportFrom) and node.module == "bhive_mltf.law":
                found += [(path.name, alias.name) for alias in node.names if alias.name == "tasks"]
    assert found == []


def test_a_foreign_class_of_a_name_of_ours_runs_by_name(tmp_path):
    """Without our law.cfg, too: nothing of ours is known to law, not even after all our modules are imported."""
    (tmp_path / "law.cfg").write_text("[modules]\nforeign\n[luigi_core]\nlocal_scheduler: True\nno_lock: True\n")
    (tmp_path / "foreign.py").write_text(FOREIGN.format(modules=modules()))
    sandbox = Sandbox(tmp_path, tmp_path / "home")
    changes = {
        "LAW_CONFIG_FILE": str(tmp_path / "law.cfg"),
        "PYTHONPATH": f"{sandbox.environment['PYTHONPATH']}:{tmp_path}",
    }
    assert "written 1 task(s)" in sandbox.law("index", **changes).stdout
    done = sandbox.law("run", "TrainingTask", "--lepton", "tau", "--dataset-version", "v1", **changes)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "TrainingTask/v1/model.txt").read_text() == "tau"


SCHEDULER = """
import sys, luigi
from luigi.cmdline_parser import CmdlineParser
from luigi.interface import core
from bhive_mltf.law.tasks.training import TrainingTask

with CmdlineParser.global_instance(["TrainingTask", "--model-name", "DeepJet", *sys.argv[1:]]) as parser:
    parser.get_task_obj()
    print(core().local_scheduler, core().no_lock, core().log_level)
"""


@pytest.mark.parametrize(
    ("lines", "options", "expected"),
    [
        ("", (), "True True INFO"),
        ("[luigi_core]\nlocal_scheduler: False\nno_lock: False\nlog_level: DEBUG\n", (), "False False DEBUG"),
        ("[luigi_core]\ndefault-scheduler-host: far.away\n", (), "False True INFO"),
        ("", ("--scheduler-host", "far.away"), "False True INFO"),
    ],
)
def test_who_schedules_where_the_user_said_so_or_nothing(tmp_path, lines, options, expected):
    (tmp_path / "law.cfg").write_text(f"[modules]\nbhive_mltf.law.tasks\n{lines}")
    environment = {**Sandbox(tmp_path, tmp_path).environment, "LAW_CONFIG_FILE": str(tmp_path / "law.cfg")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCHEDULER, *options],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == expected, done.stderr


def test_importing_the_tasks_changes_no_settings():
    code = """
import logging, os
before = dict(os.environ)
import luigi, law
config = luigi.configuration.get_config()
sections = {name: dict(config.items(name)) for name in config.sections()}
import bhive_mltf.law.tasks
assert dict(os.environ) == before
assert {name: dict(config.items(name)) for name in config.sections()} == sections
assert not logging.getLogger("luigi-interface").filters
assert not luigi.Task._event_callbacks
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


WRONG = """
import luigi
from bhive_mltf.errors import ParameterError
from bhive_mltf.law.tasks.base import BaseTask

class Needed(BaseTask):
    def complete(self): return False
    def run(self): open("ran.txt", "w")

class Wrong(BaseTask):
    def complete(self): return False
    def check(self): raise ParameterError("--wrong is wrong")
    def run(self): open("ran.txt", "w")

class Root(BaseTask):
    def complete(self): return False
    def requires(self): return [Needed(), Wrong()]
    def run(self): open("ran.txt", "w")

done = luigi.build([Root()], local_scheduler=True, detailed_summary=True)
print(done.status)
"""


def test_a_wrong_requirement_ends_before_its_neighbours_run(tmp_path):
    environment = {**Sandbox(tmp_path, tmp_path).environment}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WRONG],
        env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert "SCHEDULING_FAILED" in done.stdout, done.stdout
    assert "error: --wrong is wrong" in done.stdout
    assert "Traceback" not in done.stdout
    assert not (tmp_path / "ran.txt").exists()
