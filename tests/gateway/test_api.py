"""The REST interface: who may do what, and what wrong requests get."""

import base64
import hashlib
import io
import json
import os
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import httpx
import pytest
import sqlalchemy

from bhive_mltf.gateway import app as application
from bhive_mltf.gateway.api import services
from bhive_mltf.gateway.errors import UpstreamError
from bhive_mltf.gateway.settings import Settings
from bhive_mltf.gateway.store import queries
from bhive_mltf.gateway.store.tables import State, Submission
from tests.gateway import configuration, serving
from tests.gateway.keys import FakeProvider
from tests.gateway.test_tokens import _unsigned

MLPROJECT = b"""name: demo
entry_points:
  main:
    parameters: {epochs: {type: float, default: 1}}
    command: python a.py {epochs}
"""


class FakeTracking:
    """Keeps runs by the tag of their submission; `is_away` answers nothing."""

    runs: ClassVar = {}
    is_away = False

    def __init__(self, url, token):
        if FakeTracking.is_away:
            raise UpstreamError("the tracking server does not answer")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def experiment(self, name):
        return "1"

    def run(self, experiment, submission, *rest):
        return self.runs.setdefault(submission, f"run{len(self.runs)}")

    def log_params(self, *arguments):
        pass

    def set_status(self, *arguments):
        pass


@pytest.fixture
def provider():
    return FakeProvider()


@pytest.fixture
def settings(tmp_path, database_url):
    content = configuration.content(
        tmp_path,
        {
            "gpu": {"facility": "x", "environment": "/env", "max_hours": 5, "gpus_per_node": 2},
            "large": {"facility": "x", "environment": "/env"},
        },
        {"clients": ["robot"]},
        database_url=database_url,
        roles={
            "user": {"profiles": ["gpu"], "jobs": 3, "gpu_hours": 10},
            "admin": {"profiles": ["gpu"], "admin": True},
        },
        limits={"archive_bytes": 200_000},
    )
    return Settings(**content)


@pytest.fixture
def client(settings, provider, monkeypatch):
    FakeTracking.runs, FakeTracking.is_away = {}, False
    monkeypatch.setattr(services, "Tracking", FakeTracking)
    made = application.make(settings, provider.verifier())
    # http only: reading all certificates would take longer than most of these tests
    with (
        serving.listening() as (at, url),
        serving.answering(made, at),
        httpx.Client(base_url=url, timeout=60, verify=False) as client,
    ):
        client.app = made
        yield client
    made.state.services.database.close()


def archive(**files):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in {"MLproject": MLPROJECT, "a.py": b"print(1)", **files}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


class User:
    def __init__(self, client, provider, name, **claims):
        self.client, self.headers = client, {"Authorization": f"Bearer {provider.token(sub=name, **claims)}"}

    def ask(self, method, path, **given):
        return self.client.request(method, path, headers={**self.headers, **given.pop("headers", {})}, **given)

    def upload(self, content=None):
        content = content or archive()
        digest = hashlib.sha256(content).hexdigest()
        return digest, self.ask("PUT", f"/v1/projects/{digest}", content=content)

    def submit(self, digest, key="key-00001", **request):
        body = {"project": digest, "profile": "gpu", "hours": 1, **request}
        return self.ask("POST", "/v1/submissions", json=body, headers={"Idempotency-Key": key})


@pytest.fixture
def alice(client, provider):
    return User(client, provider, "alice")


@pytest.fixture
def bob(client, provider):
    return User(client, provider, "bob")


@pytest.fixture
def job(alice):
    digest, _ = alice.upload()
    return alice.submit(digest).json()["id"]


OPEN = {("GET", "/v1/config"), ("GET", "/.well-known/jwks.json"), ("GET", "/healthz"), ("GET", "/readyz")}
BODY = {"project": "0" * 64, "profile": "gpu"}
# of a route: the code for its owner, and for another person with a role
ROUTES = {
    ("GET", "/v1/me"): (200, 200),
    ("GET", "/v1/profiles"): (200, 200),
    ("POST", "/v1/tokens/tracking"): (200, 200),
    ("HEAD", "/v1/projects/{digest}"): (200, 404),
    ("PUT", "/v1/projects/{digest}"): (200, 422),
    ("POST", "/v1/submissions"): (422, 422),
    ("GET", "/v1/submissions"): (200, 200),
    ("GET", "/v1/submissions/{job_id}"): (200, 404),
    ("POST", "/v1/submissions/{job_id}/cancel"): (202, 404),
    ("GET", "/v1/submissions/{job_id}/log"): (200, 404),
}
IDENTITIES = {
    "none": lambda p: None,
    "no bearer": lambda p: "Basic YTpi",
    "expired": lambda p: "Bearer " + p.token(exp=int(time.time()) - 60),
    "wrong issuer": lambda p: "Bearer " + p.token(iss="https://evil.example"),
    "wrong audience": lambda p: "Bearer " + p.token(aud="other"),
    "alg none": lambda p: "Bearer " + _unsigned(p),
    "ID token": lambda p: "Bearer " + p.token(nonce="n"),
    "stranger's client": lambda p: "Bearer " + p.token(client_id="stranger"),
}


def routes_of(client):
    paths = client.app.openapi()["paths"]
    return {(method.upper(), path) for path, methods in paths.items() for method in methods}


def ask(client, route, authorization, digest="0" * 64, job="j" * 27):
    method, path = route
    headers = {"Authorization": authorization} if authorization else {}
    given = {"json": BODY} if path == "/v1/submissions" and method == "POST" else {}
    path = path.replace("{digest}", digest).replace("{job_id}", job)
    return client.request(method, path, headers={**headers, "Idempotency-Key": "key-00009"}, **given)


def test_every_route_has_a_row(client):
    assert {*OPEN, *ROUTES} == routes_of(client)


@pytest.mark.parametrize("route", sorted(ROUTES))
def test_identity_table(client, provider, alice, bob, job, route):
    for name, made in IDENTITIES.items():
        answer = ask(client, route, made(provider))
        assert answer.status_code == 401, name
        assert route[0] == "HEAD" or answer.headers["content-type"] == "application/problem+json"
    guest = ask(client, route, "Bearer " + provider.token(sub="guest", roles=[]))
    assert guest.status_code == 403
    unknown = ask(client, route, "Bearer " + provider.token(sub="guest", roles=["visitor"]))
    assert unknown.status_code == 403
    digest, _ = alice.upload()
    of_owner, of_other = ROUTES[route]
    for headers, expected in ((bob.headers, of_other), (alice.headers, of_owner)):
        answer = ask(client, route, headers["Authorization"], digest, job)
        assert answer.status_code == expected, answer.text
    admin = "Bearer " + provider.token(sub="admin", roles=["admin"])
    robot = "Bearer " + provider.token(sub="robot", client_id="robot")
    for authorization in (admin, robot):
        assert ask(client, route, authorization, digest, job).status_code == of_other


@pytest.mark.parametrize("route", sorted(OPEN))
def test_open_routes_hold_no_secret(client, route):
    answer = ask(client, route, None)
    assert answer.status_code == 200
    assert "PRIVATE" not in answer.text
    assert '"d"' not in answer.text
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_token_in_the_address_is_refused(client, provider):
    answer = client.get("/v1/me", params={"access_token": provider.token()})
    assert answer.status_code == 400
    assert provider.token()[:40] not in answer.text


def test_blocked_person_gets_nothing(client, alice):
    assert alice.ask("GET", "/v1/me").status_code == 200
    with client.app.state.services.database.writing() as session:
        for one in session.scalars(sqlalchemy.select(queries.Owner)):
            one.blocked_at = time.time()
    assert alice.ask("GET", "/v1/me").status_code == 403


def test_submission_is_recorded_as_it_will_run(alice):
    digest, first = alice.upload()
    assert (first.status_code, alice.upload()[1].status_code) == (201, 200)
    answer = alice.submit(digest, parameters={"epochs": "7"}, name="a name")
    assert answer.status_code == 201
    job = answer.json()
    assert job["argv"] == ["python", "a.py", "7"]
    assert (job["state"], job["gpus"], job["hours"], job["name"]) == ("accepted", 2, 1.0, "a name")
    events = alice.ask("GET", f"/v1/submissions/{job['id']}").json()["events"]
    assert [one["to"] for one in events] == ["creating", "accepted"]


def test_same_key_is_the_same_job_and_another_request_a_conflict(alice):
    digest, _ = alice.upload()
    first, second = alice.submit(digest), alice.submit(digest)
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json()["id"] == second.json()["id"]
    assert alice.submit(digest, hours=2).status_code == 409
    assert len(alice.ask("GET", "/v1/submissions").json()["submissions"]) == 1


def test_job_goes_on_from_its_key_after_tracking_was_away(alice):
    digest, _ = alice.upload()
    FakeTracking.is_away = True
    answer = alice.submit(digest)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "10")
    FakeTracking.is_away = False
    assert alice.submit(digest).json()["state"] == "accepted"
    assert len(FakeTracking.runs) == 1


def test_dry_run_leaves_nothing(alice):
    digest, _ = alice.upload()
    body = {"project": digest, "profile": "gpu"}
    answer = alice.ask("POST", "/v1/submissions?dry_run=true", json=body, headers={"Idempotency-Key": "key-00001"})
    assert (answer.status_code, answer.json()["argv"]) == (200, ["python", "a.py", "1"])
    assert alice.ask("GET", "/v1/submissions").json()["submissions"] == []


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        ({"profile": "large"}, 403, "you may use: gpu"),
        ({"profile": "none"}, 403, "you may not use"),
        ({"hours": 6}, 422, "more than the 5"),
        ({"nodes": 2}, 422, "more than the 1"),
        ({"hours": -1}, 422, "hours"),
        ({"entry_point": "mian"}, 422, "there are: main"),
        ({"parameters": {"epochs": "x"}}, 422, "must be a number"),
        ({"parameters": {"epochs": 1}}, 422, "parameters"),
        ({"project": "0" * 64}, 422, "not uploaded"),
        ({"account": "other"}, 422, "account"),
        ({"experiment": "../other"}, 422, "experiment"),
        ({"tags": {"a": "x" * 6000}}, 422, "tags"),
    ],
)
def test_wrong_request_names_what_is_wrong(alice, request_, code, words):
    digest, _ = alice.upload()
    answer = alice.submit(digest, **request_)
    assert answer.status_code == code
    assert words in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/v1/submissions?after=a%00b", "/v1/submissions/j%00", "/v1/submissions?label=%00"])
def test_nul_in_a_request_is_no_error_of_the_server(alice, path):
    assert alice.ask("GET", path).status_code in (200, 404, 422)


def test_nul_in_the_name_of_a_person_is_left_out(client, provider):
    user = User(client, provider, "nul", preferred_username="a\0b")
    assert user.ask("GET", "/v1/me").status_code == 200


def test_body_that_is_no_json_is_a_problem_document(alice):
    headers = {"Idempotency-Key": "key-00001", "Content-Type": "application/json"}
    answer = alice.ask("POST", "/v1/submissions", content=b"{", headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:mltf:validation")


def test_quota_of_jobs_and_gpu_hours(alice, bob):
    digest, _ = alice.upload()
    assert alice.submit(digest, "key-00001", hours=4).status_code == 201
    answer = alice.submit(digest, "key-00002", hours=2)
    assert (answer.status_code, answer.json()["type"]) == (429, "urn:mltf:quota-gpu-hours")
    assert "8 GPU hours, this one asks for 4, and you may hold 10" in answer.json()["detail"]
    assert alice.submit(digest, "key-00003", hours=0.5).status_code == 201
    assert alice.submit(digest, "key-00004", hours=0.5).status_code == 201
    assert alice.submit(digest, "key-00005", hours=0.1).json()["type"] == "urn:mltf:quota-jobs"
    other, _ = bob.upload()
    assert bob.submit(other).status_code == 201


def test_fifty_submissions_at_once_stay_below_the_limit(alice):
    digest, _ = alice.upload()
    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(lambda n: alice.submit(digest, f"key-{n:05}", hours=0.1).status_code, range(50)))
    assert (codes.count(201), codes.count(429)) == (3, 47)


def test_digest_of_another_person_gives_nothing(alice, bob):
    digest, _ = alice.upload()
    assert bob.submit(digest).status_code == 422
    assert bob.ask("HEAD", f"/v1/projects/{digest}").status_code == 404


def test_wrong_uploads(alice, settings):
    content = archive()
    digest = hashlib.sha256(content).hexdigest()
    for path, given, code in (
        (f"/v1/projects/{digest}", {"content": content + b"x"}, 422),
        ("/v1/projects/abc", {"content": content}, 422),
        (f"/v1/projects/{digest}", {"content": content, "headers": {"Content-Encoding": "br"}}, 415),
        (f"/v1/projects/{digest}", {"content": content, "headers": {"Content-Encoding": "gzip"}}, 422),
    ):
        assert alice.ask("PUT", path, **given).status_code == code
    assert alice.upload(b"x" * 300_000)[1].status_code == 413
    assert alice.upload(b"no archive")[1].status_code == 422
    assert list((settings.spool / "blobs" / "incoming").iterdir()) == []


def test_what_a_killed_upload_left_goes_after_a_day(alice, settings):
    folder = settings.spool / "blobs" / "incoming"
    folder.mkdir(parents=True)
    for name, age in (("old", 25 * 3600), ("new", 23 * 3600)):
        (folder / name).touch()
        os.utime(folder / name, (0, time.time() - age))
    assert alice.upload()[1].status_code == 201
    assert [path.name for path in folder.iterdir()] == ["new"]


def test_pages_go_through_all_jobs_once(client, alice, job):
    with client.app.state.services.database.writing() as session:
        (first,) = queries.alive(session)
        copied = {
            c.name: getattr(first, c.name) for c in Submission.__table__.columns if c.name not in ("id", "idem_key")
        }
        for number in range(10):
            session.add(Submission(**copied, idem_key=f"more-{number}"))
    seen, after = [], ""
    while True:
        page = alice.ask("GET", "/v1/submissions", params={"limit": 4, "after": after}).json()
        seen += [one["id"] for one in page["submissions"]]
        after = page["next"]
        if not after:
            break
    assert len(seen) == len(set(seen)) == 11


def test_log_is_read_in_ranges_until_the_end(client, alice, settings, job):
    path = settings.job_folder(job) / "logs" / "rank_0.log"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"0123456789")
    answer = alice.ask("GET", f"/v1/submissions/{job}/log", params={"offset": 4, "limit": 3})
    assert (answer.content, answer.headers["X-Log-Next"], answer.headers["X-Log-Complete"]) == (b"456", "7", "false")
    assert alice.ask("GET", f"/v1/submissions/{job}/log", params={"offset": 11}).status_code == 416
    assert alice.ask("GET", f"/v1/submissions/{job}/log", params={"rank": -1}).status_code == 422
    begun = time.monotonic()
    answer = alice.ask("GET", f"/v1/submissions/{job}/log", params={"offset": 10, "wait": 1})
    assert (answer.content, answer.headers["X-Log-Complete"]) == (b"", "false")
    assert 0.9 < time.monotonic() - begun < 10
    with client.app.state.services.database.writing() as session:
        session.get(Submission, job).state = State.SUCCEEDED.value
    answer = alice.ask("GET", f"/v1/submissions/{job}/log", params={"offset": 10, "wait": 20})
    assert answer.headers["X-Log-Complete"] == "true"


def test_job_that_is_over_is_not_cancelled(client, alice, job):
    with client.app.state.services.database.writing() as session:
        session.get(Submission, job).state = State.SUCCEEDED.value
    answer = alice.ask("POST", f"/v1/submissions/{job}/cancel")
    assert (answer.status_code, answer.json()["cancel_at"]) == (200, None)


def test_no_token_is_in_the_database_or_the_spool(alice, job, settings, tmp_path):
    token = alice.headers["Authorization"].split()[1]
    parts = [token, *token.split(".")]
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        content = path.read_bytes()
        assert not any(part.encode() in content for part in parts if len(part) > 20), path


def test_tracking_token_lives_no_longer_than_the_callers(client, provider):
    user = User(client, provider, "alice", exp=int(time.time()) + 100)
    answer = user.ask("POST", "/v1/tokens/tracking").json()
    assert answer["expires_in"] <= 100
    claims = json.loads(base64.urlsafe_b64decode(answer["token"].split(".")[1] + "=="))
    assert (claims["kind"], claims["aud"]) == ("user", "mlflow")
