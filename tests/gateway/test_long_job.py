"""A job of hours with tokens of minutes, in a time of its own."""

import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import httpx
import jwt
import pytest

from bhive_mltf.gateway.inside.relay import Relay
from bhive_mltf.gateway.worker import job_folder
from bhive_mltf.gateway.worker.main import tick
from bhive_mltf.gateway.worker.steps import Steps
from tests.gateway.test_findings import User, submitted
from tests.gateway.whole import Whole

pytestmark = pytest.mark.gateway
TOKEN_S, JOB_S, TICK_S = 120, 3 * 3600, 15
# in the beginning of each hour the worker is away for half the life of a token, less one tick
AWAY_S = TOKEN_S / 2 - TICK_S


class Upstream(ThreadingHTTPServer):
    """Takes tokens of the gateway that are not over in the time of the simulation; counts all, and those refused."""

    def __init__(self, minter, clock):
        self.minter, self.clock, self.calls, self.refused, self.tokens = minter, clock, 0, [], set()
        super().__init__(("127.0.0.1", 0), _Checking)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def check(self, token):
        (key,) = self.minter.keys.values()
        options = {"verify_exp": False, "verify_iat": False}
        claims = jwt.decode(token, key.public_key(), algorithms=["ES256"], audience="mlflow", options=options)
        self.calls += 1
        self.tokens.add(claims["jti"])
        good = claims["iat"] <= self.clock.now + 1 and self.clock.now < claims["exp"] and claims["kind"] == "job"
        if not good:
            self.refused.append(self.clock.now - claims["iat"])
        return good


class _Checking(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        good = self.server.check(self.headers["Authorization"].removeprefix("Bearer "))
        self.send_response(200 if good else 401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def clock(monkeypatch):
    made = SimpleNamespace(now=time.time())
    monkeypatch.setattr(job_folder, "time", SimpleNamespace(time=lambda: made.now))
    written = job_folder.write_token

    def write_token(settings, submission, token):
        written(settings, submission, token)
        path = settings.job_folder(submission.id) / job_folder.PRIVATE / job_folder.TOKEN_NAME
        # the file system keeps the time of the simulation too
        job_folder.os.utime(path, (made.now, made.now))

    monkeypatch.setattr(job_folder, "write_token", write_token)
    return made


@pytest.fixture
def whole(tmp_path, monkeypatch):
    made = Whole(tmp_path, monkeypatch)
    yield made
    made.close()


def test_three_hours_with_tokens_of_two_minutes_fail_no_call(whole, clock, tmp_path):
    job = submitted(User(whole.client, whole.provider, "alice"))
    settings = whole.settings.model_copy(update={"token_s": float(TOKEN_S), "tick_s": 5.0})
    minter = replace(whole.steps.minter, clock=lambda: clock.now)
    whole.steps = Steps(settings, whole.database, whole.office, minter)
    whole.until(job, "queued")
    whole.scheduler.change(whole.row(job).job_id, state="RUNNING")
    token_file = settings.job_folder(job) / job_folder.PRIVATE / job_folder.TOKEN_NAME
    with Upstream(minter, clock) as upstream:
        address = f"http://127.0.0.1:{upstream.server_port}"
        with Relay(tmp_path / "relay", address, token_file).running() as relay:
            transport = httpx.HTTPTransport(uds=str(tmp_path / "relay"))
            with httpx.Client(base_url=f"http://relay/{relay.secret}", transport=transport) as inside:
                for number in range(JOB_S // TICK_S):
                    if number * TICK_S % 3600 >= AWAY_S:
                        assert tick(whole.steps, whole.database, whole.office) == 0
                    # just before the next tick: the token is as old as it gets
                    clock.now += TICK_S - 0.1
                    assert inside.get("/api/2.0/mlflow/runs/get").status_code == 200
                    clock.now += 0.1
        upstream.shutdown()
    assert upstream.refused == []
    assert upstream.calls == JOB_S // TICK_S
    assert len(upstream.tokens) >= JOB_S // TOKEN_S
    assert whole.row(job).state == "running"


def test_token_that_nobody_renews_is_refused(whole, clock):
    minter = replace(whole.steps.minter, clock=lambda: clock.now)
    with Upstream(minter, clock) as upstream:
        token = minter.mint("alice", "job", TOKEN_S)
        clock.now += TOKEN_S - 1
        assert upstream.check(token)
        clock.now += 1
        assert not upstream.check(token)
        upstream.shutdown()
