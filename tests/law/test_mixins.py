"""The mixins on task classes of others: what they wrap, what they refuse, what enters a command."""

import json
import os
import warnings
from pathlib import Path

import pytest

with warnings.catch_warnings(action="ignore"):  # luigi's own, about its range tasks
    import law
    import luigi

from bhive_mltf.errors import ParameterError
from bhive_mltf.law import MLflowMixin, RanksMixin, SlurmMixin
from bhive_mltf.law.mixins.rank_process import read_task
from bhive_mltf.law.mixins.run import given_parameters
from bhive_mltf.law.mixins.slurm import law_command
from bhive_mltf.slurm import profiles
from bhive_mltf.slurm.job import JobSpec
from bhive_mltf.slurm.record import JobRecord
from bhive_mltf.tracking import store
from tests.helpers.fake_scheduler import FakeScheduler


class Base(law.Task):
    version = luigi.Parameter(default="v1")
    resume_epoch = luigi.IntParameter(default=False)
    exclude_index = True

    def local_path(self, *path):
        return "/".join((os.environ["DATA_PATH"], type(self).__name__, self.version, *path))

    def output(self):
        return law.LocalFileTarget(self.local_path("out.txt"))


class Plain(Base):
    """A task as upstream has them."""

    def run(self):
        self.output().dump("done", formatter="text")


class Mixed(SlurmMixin, MLflowMixin, RanksMixin, Plain):
    """All mixins before a class that has the `run`."""


class Own(SlurmMixin, MLflowMixin, RanksMixin, Base):
    """All mixins on a class with a `run` and a path of its own."""

    def local_path(self, *path):
        return super().local_path("own", *path)

    def run(self):
        self.calls = [*getattr(self, "calls", []), "own"]


class Twice(Own):
    def local_path(self, *path):
        return super().local_path("twice", *path)

    def run(self):
        super().run()
        self.calls.append("twice")
        self.output().dump("done", formatter="text")


@pytest.fixture(autouse=True)
def data_path(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_PATH", str(tmp_path / "out"))
    for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "BHIVE_MLTF_INSIDE_JOB"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "out"


@pytest.fixture
def counted(monkeypatch):
    """What the mixins do, without doing it."""
    done = []
    monkeypatch.setattr(MLflowMixin, "prepare_run", lambda self, status="RUNNING": done.append(f"run {status}"))
    monkeypatch.setattr(MLflowMixin, "run_in_ranks", lambda self, work: work())
    monkeypatch.setattr(RanksMixin, "launch_ranks", lambda self: done.append(f"launch {self.n_ranks()}"))
    monkeypatch.setattr(SlurmMixin, "run_as_job", lambda self: done.append("job"))
    return done


def test_a_class_without_a_run_gets_that_of_its_bases(counted):
    Mixed(tracking=False).run()
    assert Mixed(tracking=False).complete()
    assert counted == ["run RUNNING"]


def test_super_run_is_one_run_and_one_launch(counted):
    task = Twice(tracking=False)
    task.run()
    assert task.calls == ["own", "twice"]
    assert counted == ["run RUNNING"]
    Twice(version="v2", ranks_per_node=3).run()
    assert counted[1:] == ["run RUNNING", "launch 3"]


def test_super_run_is_one_job(counted):
    Twice(version="v3", slurm="generic").run()
    assert counted == ["job"]


def test_after_an_error_the_task_may_run_again(counted, monkeypatch):
    task = Own(version="again", tracking=False)
    monkeypatch.setattr(RanksMixin, "starts_ranks", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        task.run()
    monkeypatch.undo()
    monkeypatch.setenv("DATA_PATH", "/nowhere")
    assert not task._runs


@pytest.mark.parametrize("cls", [Mixed, Own, Twice])
def test_the_path_of_a_rank_above_0_is_elsewhere(cls, tmp_path, data_path):
    task, above = cls(version="a"), cls(version="b")
    above._aside = tmp_path / "rank_1"
    assert task.local_path("x", "y").startswith(str(data_path))
    assert above.local_path("x", "y") == str(tmp_path / "rank_1/x/y")
    assert above.local_path("") == f"{tmp_path / 'rank_1'}/"
    assert above.output().path == str(tmp_path / "rank_1/out.txt")


def test_parameters_at_their_default_are_not_given():
    task = Mixed(version="v9", slurm="generic", hours=2.0)
    assert given_parameters(task) == {"version": "v9", "slurm": "generic", "hours": "2.0"}
    assert law_command(task, profiles.read_profile("generic").python)[4:] == [f"{__name__}.Mixed", "--version", "v9"]
    assert given_parameters(Mixed(resume_epoch=3)) == {"resume_epoch": "3"}


def test_a_default_of_the_settings_does_not_hide_a_value(monkeypatch):
    config = luigi.configuration.get_config()
    config.set("Mixed", "version", "v5")
    try:
        assert given_parameters(Mixed(version="v1"))["version"] == "v1"
    finally:
        config.remove_section("Mixed")


def test_a_rank_makes_the_task_of_its_file(data_path):
    task = Mixed(version="v7", ranks_per_node=2)
    content = json.loads(task.rank_file().read_text())
    assert content["parameters"] == {"version": "v7", "ranks_per_node": "2"}
    found = read_task(task.rank_file())
    assert (type(found).__name__, found.version, found.resume_epoch) == ("Mixed", "v7", False)


def test_a_wrong_order_of_bases_is_refused():
    with pytest.raises(TypeError, match=r"has SlurmMixin behind MLflowMixin: its bases are SlurmMixin, MLflowMixin,"):
        type("Wrong", (MLflowMixin, SlurmMixin, Plain), {})
    with pytest.raises(TypeError, match="class Wrong has RanksMixin behind Plain"):
        type("Wrong", (Plain, RanksMixin), {})


def test_a_task_without_a_path_is_refused():
    with pytest.raises(TypeError, match="class NoPath has no local_path, which RanksMixin needs"):
        type("NoPath", (RanksMixin, law.Task), {"run": lambda self: None})


def test_a_run_that_yields_requirements_is_refused():
    def run(self):
        yield Plain()

    with pytest.raises(TypeError, match="Yields.run yields requirements"):
        type("Yields", (MLflowMixin, Base), {"run": run})


def test_several_nodes_need_a_job(counted):
    with pytest.raises(ParameterError, match="--nodes 2 without a facility profile"):
        Own(version="nodes", nodes=2, tracking=False).run()


def test_a_mixin_may_be_left_out(counted):
    class OnlyTracked(MLflowMixin, Plain):
        pass

    class OnlyRanks(RanksMixin, Plain):
        pass

    OnlyTracked(tracking=False).run()
    OnlyRanks(ranks_per_node=2).run()
    assert counted == ["run RUNNING", "launch 2"]
    assert not hasattr(OnlyTracked, "ranks_per_node")


def test_the_run_of_a_failed_task_tells_why(data_path):
    class Fails(MLflowMixin, Base):
        def run(self):
            from bhive_mltf import tracking

            tracking.current().metrics({"Training Loss": 1.0}, step=0)
            if not getattr(self, "mended", False):
                raise ValueError("no jets left\nin the file")

    task = Fails()
    with pytest.raises(ValueError, match="no jets left"):
        task.run()
    run = only_run(data_path)
    assert (run.info.status, run.data.tags["failure"]) == ("FAILED", "ValueError: no jets left")
    task.mended = True
    task.run()
    run = only_run(data_path)
    assert (run.info.status, run.data.tags["failure"], run.data.metrics) == ("FINISHED", "", {"Training Loss": 1.0})
    assert run.data.params["version"] == "v1"


def only_run(data_path):
    from mlflow import MlflowClient

    client = MlflowClient(store.tracking_uri(Path(data_path)))
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return run


def test_a_job_of_a_task_with_ranks_starts_them(data_path, tmp_path, monkeypatch):
    """The scheduler is one of scripts; the job is over before it is followed, without its outputs."""
    scheduler = FakeScheduler(tmp_path / "bin").install()
    monkeypatch.setenv("PATH", f"{scheduler.folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    handed_in = []
    monkeypatch.setattr("bhive_mltf.law.mixins.slurm.follow_to_end", lambda task, record, *_: handed_in.append(record))
    Twice(version="job", slurm="generic", ranks_per_node=2, tracking=False).run()
    (record,) = handed_in
    spec = JobSpec.read(record.folder / "spec.json")
    assert (spec.kind, spec.ranks_per_node, spec.name) == ("ranks", 2, "Twice")
    assert spec.command[1:3] == ("-m", "bhive_mltf.law.mixins.rank_process")
    assert read_task(spec.directory / spec.command[3]).version == "job"
    assert JobRecord.read(spec.directory).job_id == record.job_id
    with pytest.raises(Exception, match=f"job {record.job_id} of .* is PENDING: add --slurm generic to follow it"):
        Twice(version="job", tracking=False).run()
