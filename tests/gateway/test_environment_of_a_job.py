"""Which environment a submission gets, from its request to the job's plan."""

import re
import threading
import time

import pytest

from bhive_mltf.gateway.api.requests import SubmissionRequest
from bhive_mltf.gateway.environments import builder
from tests.gateway import configuration, needs, wheels
from tests.gateway.test_api import MLPROJECT, User, archive
from tests.gateway.whole import Whole
from tests.helpers.waiting import wait_for

pytestmark = pytest.mark.gateway
PYTHON_ENV = b"python: 3.11\ndependencies: [alpha]\n"


def with_environment(line):
    return MLPROJECT + line.encode() + b"\n"


@pytest.fixture
def building(tmp_path, monkeypatch):
    """A gateway in one process that builds from a folder of two wheels."""
    needs.builds()
    builds = configuration.builds(tmp_path / "wheels")
    wheels.make_wheel(tmp_path / "wheels", "alpha", requires=["beta"])
    wheels.make_wheel(tmp_path / "wheels", "beta")
    made = Whole(tmp_path, monkeypatch, builds)
    yield made
    made.close()


@pytest.fixture
def person(building):
    return User(building.client, building.provider, "alice")


def submit(person, files, key="key-00001", **request):
    digest, answer = person.upload(archive(**files))
    assert answer.status_code in (200, 201), answer.text
    return person.submit(digest, key, **request)


def after(gateway, job, state="preparing"):
    """The job once it is past a state, by as many looks of the worker as that takes."""
    deadline = time.monotonic() + 30
    while gateway.row(job).state in ("accepted", state):
        gateway.until(job, "preparing", "submitting", "closing")
        gateway.tick()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return gateway.row(job)


def test_environment_is_built_and_the_job_runs_in_it(building, person):
    answer = submit(person, {"MLproject": with_environment("python_env: env.yaml"), "env.yaml": PYTHON_ENV})
    job = answer.json()["id"]
    assert answer.json()["environment"] == "env.yaml"
    row = after(building, job)
    assert len(row.env_key) == 32
    building.until(job, "queued")
    plan = building.plan(job)
    place = building.settings.environments / "ready" / row.env_key
    assert plan.environment == str(place)
    # the installation below its interpreter is seen in the sandbox too
    assert set(map(str, builder.bases_of(place / "bin" / "python"))) <= {*plan.read_only, str(place)}
    log = person.ask("GET", f"/v1/submissions/{job}/log").text
    assert log.startswith("mltf: locking 1 requirements for Python 3.11\n")
    assert f"environment {row.env_key} is ready" in log
    run = building.run(job)
    assert run["tags"]["mltf.env_key"] == row.env_key
    assert building.mlflow.artifacts[f"1/{run['id']}/artifacts/environment/requirements.lock"].startswith(b"alpha==1.0")
    answer = person.ask("GET", f"/v1/submissions/{job}").json()
    assert (answer["environment"], answer["env_key"]) == ("env.yaml", row.env_key)
    # another one with the same needs waits for nothing
    second = submit(person, {"need.txt": b"alpha\n"}, "key-00002", environment="need.txt").json()["id"]
    assert after(building, second).env_key == row.env_key
    assert "is there already" in person.ask("GET", f"/v1/submissions/{second}/log").text


def test_two_people_with_the_same_needs_share_one_build(building, person):
    bob = User(building.client, building.provider, "bob")
    jobs = [submit(one, {"need.txt": b"alpha\n"}, environment="need.txt").json()["id"] for one in (person, bob)]
    first, second = (after(building, job).env_key for job in jobs)
    assert first == second != ""
    logs = [building.settings.job_folder(job) / "logs" / "rank_0.log" for job in jobs]
    assert sum(path.read_text().count("building environment") for path in logs) == 1


def test_one_person_leaves_a_build_for_others(building, person, monkeypatch):
    go_on, begun = threading.Event(), []

    def stuck(self, wanted, lock_file):
        begun.append(wanted.requirements)
        go_on.wait(20)
        raise builder.EnvironmentBuildError("enough")

    monkeypatch.setattr(builder.Builder, "build", stuck)
    bob = User(building.client, building.provider, "bob")
    for number, one in enumerate((person, person, bob)):
        submit(one, {"need.txt": f"alpha=={number}\n".encode()}, f"key-0000{number}", environment="need.txt")
    for _ in range(10):
        building.tick()
    wait_for(lambda: len(begun) == 2, 10)
    go_on.set()
    assert sorted(begun) == [("alpha==0",), ("alpha==2",)]


def test_failed_build_ends_the_job_with_the_sentence_of_uv(building, person):
    job = submit(person, {"need.txt": b"nowhere\n"}, environment="need.txt").json()["id"]
    found = after(building, job)
    building.until(job, "failed")
    assert found.reason_code == "environment"
    assert "nowhere was not found" in found.reason
    assert found.reason in person.ask("GET", f"/v1/submissions/{job}/log").text
    assert building.run(job)["status"] == "FAILED"
    assert building.scheduler.jobs == {}


def test_build_holds_up_no_other_job_and_is_cancelled(building, person, monkeypatch):
    go_on = threading.Event()

    def stuck(self, wanted, lock_file):
        go_on.wait(20)
        assert self.stop.is_set()
        raise builder.EnvironmentBuildError("the build was cancelled")

    monkeypatch.setattr(builder.Builder, "build", stuck)
    job = submit(person, {"need.txt": b"alpha\n"}, environment="need.txt").json()["id"]
    other = submit(person, {}, "key-00002").json()["id"]
    building.until(other, "queued")
    assert building.row(job).state == "preparing"
    person.ask("POST", f"/v1/submissions/{job}/cancel")
    building.until(job, "cancelled")
    go_on.set()


def test_lock_is_left_with_the_run_at_the_end_if_not_before(building, person):
    job = submit(person, {"need.txt": b"beta\n"}, environment="need.txt").json()["id"]
    building.until(job, "preparing")
    building.mlflow.is_away = True
    after(building, job)
    building.until(job, "queued")
    building.mlflow.is_away = False
    assert building.mlflow.artifacts == {}
    building.end(job, "COMPLETED")
    assert list(building.mlflow.artifacts.values()) == [
        (building.steps.environments.store.path(building.row(job).env_key) / "requirements.lock").read_bytes()
    ]


@pytest.mark.parametrize(
    ("asked", "files", "message"),
    [
        ("nothing.txt", {}, "has no file 'nothing.txt'"),
        ("../a.txt", {}, "no file of the project"),
        ("need.txt", {"need.txt": b"-e ."}, "no name of a package"),
        ("env.yaml", {"env.yaml": b"python: 3.9"}, "asks for Python 3.9; there are 3.11"),
        ("env.yaml", {"env.yaml": b"channels: [a]"}, "write a python_env.yaml"),
        ("need.txt", {"need.txt": b"\xff"}, "no text in UTF-8"),
        ("profile:thrid", {}, "has no environment 'thrid'; there are: second"),
        ("image:torch", {}, "has no images"),
        ("", {"MLproject": with_environment("conda_env: c.yaml")}, "asks for conda_env.*a python_env.yaml"),
        ("", {"MLproject": with_environment("docker_env: {image: a}")}, "asks for docker_env, which is not here"),
        ("", {"MLproject": with_environment("python_env: env.yaml")}, "has no file 'env.yaml'"),
    ],
)
def test_wrong_environment_is_refused_before_anything_is_made(building, person, asked, files, message):
    answer = submit(person, files, environment=asked)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/environment"
    assert re.search(message, answer.json()["detail"])
    assert building.mlflow.runs == {}


@pytest.mark.parametrize("line", ["python_env: env.yaml", "conda_env: c.yaml", "docker_env: {image: a}"])
def test_what_is_there_is_used_whatever_the_project_asks_for(whole, alice, line):
    files = {"MLproject": with_environment(line), "env.yaml": PYTHON_ENV}
    for number, (asked, environment) in enumerate((("profile", "env"), ("profile:second", "env"))):
        job = submit(alice, files, f"key-0000{number}", environment=asked).json()["id"]
        whole.until(job, "queued")
        assert whole.plan(job).environment == str(whole.folder / environment)


def test_profile_without_builds_says_so_and_names_what_is_there(whole, alice):
    answer = submit(alice, {"MLproject": with_environment("python_env: env.yaml"), "env.yaml": PYTHON_ENV})
    assert answer.status_code == 422
    assert (
        "profile gpu builds no environments, as 'env.yaml' asks for: hand in with environment 'profile'" in answer.text
    )
    (profile,) = alice.ask("GET", "/v1/profiles").json()
    assert (profile["environments"], profile["builds"]) == (["profile", "profile:second"], False)


def test_request_from_before_there_was_a_choice_is_the_same_one():
    request = SubmissionRequest(project="0" * 64, profile="gpu")
    assert request.digest() == "d3cb323beafb8a7b553851f693b8e014f58df70e813c5b65147ff85c69205c14"
