"""The 34 faults that were found in an earlier gateway for the same purpose: ours has none of them."""

import ast
import base64
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import sqlalchemy

from bhive_mltf import gateway
from bhive_mltf.errors import ConfigError
from bhive_mltf.gateway.inside.plan import LaunchPlan
from bhive_mltf.gateway.store.database import Database
from bhive_mltf.gateway.store.tables import Base, Owner
from bhive_mltf_client import credentials, packing
from bhive_mltf_client import main as command
from bhive_mltf_client.errors import ClientError
from tests.gateway.test_api import MLPROJECT, User, archive

REPOSITORY = Path(__file__).parents[2]
SOURCES = [*Path(gateway.__file__).parent.rglob("*.py"), *(REPOSITORY / "client" / "bhive_mltf_client").rglob("*.py")]
OTHER_ENTRY = (
    MLPROJECT
    + b"""  other:
    parameters: {lines: {type: float, default: 10}}
    command: python a.py {lines}
"""
)


def submitted(user, key="key-00001", content=None, **request):
    digest, _ = user.upload(content)
    answer = user.submit(digest, key, **request)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def imported_names():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                yield (node.module or "").split(".")[0]
            elif isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)


def launch(folder, code):
    """Run a project by the launcher, without a sandbox; its exit code and log."""
    for name in ("work", "logs", "private"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "work" / "main.py").write_text(code)
    (folder / "private" / "token").write_text("token")
    plan = LaunchPlan(
        argv=("python", "main.py"),
        work=str(folder / "work"),
        logs=str(folder / "logs"),
        runtime="none",
        network="shared",
        environment=sys.prefix,
        tracking_url="http://127.0.0.1:9",
        token_file=str(folder / "private" / "token"),
        run_id="the-run",
        experiment_id="1",
    )
    (folder / "plan.json").write_text(plan.to_json())
    arguments = [sys.executable, "-m", "bhive_mltf.gateway.inside.launch", str(folder / "plan.json")]
    log = folder / "logs" / "rank_0.log"
    with log.open("wb") as file:
        variables = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(arguments, env=variables, stdout=file, stderr=file, timeout=60, check=False)
    return done.returncode, log


@pytest.mark.gateway
def test_m01_entry_points_of_the_installed_wheel_load():
    from tests.gateway.stack import installed_client

    code = (
        "import importlib.metadata as m, sys;"
        "points = list(m.distribution('bhive-mltf-client').entry_points);"
        "[one.load() for one in points]; print(sorted(one.group for one in points))"
    )
    variables = {**os.environ, "PYTHONPATH": str(installed_client())}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(["console_scripts", "mlflow.project_backend", "mlflow.request_auth_provider"]), (
        done.stderr
    )


def test_m02_entry_point_and_parameters_run_as_recorded(whole, alice):
    job = submitted(alice, content=archive(MLproject=OTHER_ENTRY), entry_point="other", parameters={"lines": "7"})
    whole.until(job, "queued")
    run = whole.run(job)
    assert (run["params"], run["tags"]["mlflow.project.entryPoint"]) == ({"lines": "7"}, "other")
    assert whole.plan(job).argv == ("python", "a.py", "7")


def test_m03_job_that_dies_before_user_code_ends_its_run(whole, alice):
    job = submitted(alice)
    whole.until(job, "queued")
    assert whole.end(job, "FAILED", 256).state == "failed"
    assert whole.run(job)["status"] == "FAILED"
    other = submitted(alice, "key-00002")
    whole.until(other, "queued")
    alice.ask("POST", f"/v1/submissions/{other}/cancel")
    assert whole.end(other, "CANCELLED").state == "cancelled"
    assert whole.run(other)["status"] == "KILLED"


def test_m04_strangers_get_404_for_ids_that_nobody_guesses(whole, alice):
    jobs = [submitted(alice, f"key-0000{n}") for n in range(2)]
    bob = User(whole.client, whole.provider, "bob")
    for method, path in (("GET", ""), ("GET", "/log"), ("POST", "/cancel")):
        assert bob.ask(method, f"/v1/submissions/{jobs[0]}{path}").status_code == 404
    raw = [base64.b32decode(job[1:].upper() + "======") for job in jobs]
    assert [len(one) for one in raw] == [16, 16]
    assert sum(a != b for a, b in zip(*raw, strict=True)) > 8


def test_m05_people_without_a_name_do_not_share_an_owner(whole):
    for subject, name in (("1", None), ("2", None), ("3", "same"), ("4", "same")):
        claims = {"preferred_username": name} if name else {}
        assert User(whole.client, whole.provider, subject, **claims).ask("GET", "/v1/me").status_code == 200
    with whole.database.reading() as session:
        owners = session.scalars(sqlalchemy.select(Owner)).all()
    assert len({one.id for one in owners}) == len({one.mlflow_name for one in owners}) == 4


class _Answers:
    """A gateway that answers with the next state."""

    def __init__(self, *states):
        self.states, self.cancelled = list(states), []

    def show(self, job):
        return {"state": self.states[0]}

    def wait(self, job, seconds=None):
        return {"state": self.states.pop(0) if len(self.states) > 1 else self.states[0]}

    def cancel(self, job):
        self.cancelled.append(job)


def test_m06_submitted_run_waits_tells_and_cancels():
    from mlflow.entities import RunStatus
    from mlflow.exceptions import ExecutionException

    from bhive_mltf_client import backend

    def run(*states):
        made = _Answers(*states)
        return backend.MltfSubmittedRun(made, {"id": "j1", "run_id": "r1"}), made

    assert [run(state)[0].wait() for state in ("succeeded", "failed", "cancelled")] == [True, False, False]
    assert run("running")[0].get_status() == RunStatus.RUNNING
    assert run("failed")[0].get_status() == RunStatus.FAILED
    one, asked = run("cancelled")
    one.cancel()
    assert (asked.cancelled, one.run_id) == (["j1"], "r1")
    with pytest.raises(ExecutionException, match="not over yet"):
        run("running")[0].cancel()


def test_m07_junk_and_too_much_are_refused_and_not_kept(whole, alice):
    assert alice.upload(b"\0" * 300_000)[1].status_code == 413
    assert alice.upload(b"junk" * 1000)[1].status_code == 422
    assert [path for path in whole.settings.spool.rglob("*") if path.is_file() and path.name != "worker.lock"] == []


def test_m08_uploads_and_tokens_do_not_stay_in_temporary_folders(whole, alice):
    job = submitted(alice)
    whole.until(job, "queued")
    folder = whole.settings.job_folder(job)
    assert folder.stat().st_mode & 0o077 == (folder / "private").stat().st_mode & 0o077 == 0
    incoming = whole.settings.spool / "blobs" / "incoming"
    assert (incoming.stat().st_mode & 0o077, list(incoming.iterdir())) == (0, [])
    whole.end(job, "COMPLETED")
    assert not (folder / "private" / "token").exists()


def test_m09_no_secret_of_the_service_is_in_state_or_logs(whole, alice, monkeypatch, caplog):
    for name in ("SLURM_JWT", "X509_USER_PROXY", "PGPASSWORD"):
        monkeypatch.setenv(name, f"canary-of-{name}")
    job = submitted(alice)
    whole.until(job, "queued")
    whole.end(job, "COMPLETED")
    files = [*whole.settings.spool.rglob("*"), *whole.folder.glob("gateway.db*")]
    assert not any(b"canary" in path.read_bytes() for path in files if path.is_file())
    key = next(whole.settings.keys.glob("*.pem")).read_text().splitlines()[1]
    assert not any(key.encode() in path.read_bytes() for path in files if path.is_file())
    assert "canary" not in caplog.text


def test_m10_state_is_plain_columns_and_damage_is_no_empty_list(tmp_path):
    assert not {"pickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle"} & set(imported_names())
    kinds = {type(column.type).__name__ for table in Base.metadata.tables.values() for column in table.columns}
    assert kinds == {"String", "Integer", "BigInteger", "Boolean", "Double", "JSON"}
    (tmp_path / "gateway.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(ConfigError, match="not a database"):
        Database(f"sqlite:///{tmp_path}/gateway.db").create()


def test_m11_names_that_look_like_tags_of_a_codec_stay(whole, alice):
    tag = '{"py/object": "os.system"}'
    params = {"__class__": tag, "__type__": "dict", "_dict_": "!!python/object:os.system", "__reduce__": "[]"}
    job = submitted(alice, parameters=params)
    found = alice.ask("GET", f"/v1/submissions/{job}").json()
    assert found["params"] == params
    assert found["argv"][3:] == [word for name, value in params.items() for word in (f"--{name}", value)]


def test_m12_restarted_worker_finds_its_jobs_and_their_logs(whole, alice):
    job = submitted(alice)
    job_id = whole.until(job, "queued").job_id
    log = whole.settings.job_folder(job) / "logs" / "rank_0.log"
    log.parent.mkdir(exist_ok=True)
    log.write_bytes(b"before\n")
    whole.restart()
    assert whole.end(job, "COMPLETED").job_id == job_id
    assert len(whole.scheduler.calls("sbatch")) == 1
    assert alice.ask("GET", f"/v1/submissions/{job}/log").content == b"before\n"


def test_m13_much_output_neither_blocks_nor_is_read_once_only(whole, alice, tmp_path):
    code, log = launch(tmp_path, "print('x' * 299_999)")
    assert (code, log.stat().st_size) == (0, 300_000)
    job = submitted(alice)
    place = whole.settings.job_folder(job) / "logs"
    place.mkdir(parents=True)
    (place / "rank_0.log").write_bytes(log.read_bytes())
    for _ in range(2):
        assert alice.ask("GET", f"/v1/submissions/{job}/log").content == log.read_bytes()


def test_m14_job_of_slurm_has_its_number_resources_and_cancel(whole, alice):
    job = submitted(alice)
    job_id = whole.until(job, "queued").job_id
    assert job_id in whole.scheduler.jobs
    script = (whole.settings.job_folder(job) / "slurm" / "job.sh").read_text()
    for wanted in (r"--nodes=1\b", r"--gpus-per-node=2\b|--gres=gpu:2\b", r"--time="):
        assert re.search(f"#SBATCH .*{wanted}", script), script
    alice.ask("POST", f"/v1/submissions/{job}/cancel")
    whole.steps.do(whole.row(job))
    (call,) = whole.scheduler.calls("scancel")
    assert job_id in " ".join(map(str, call))


class SignOn(ThreadingHTTPServer):
    """Gateway and provider of a device sign-in, the provider's endpoints at unusual places."""

    def __init__(self):
        self.asked = []
        super().__init__(("127.0.0.1", 0), _SignOnAnswers)
        self.url = f"http://127.0.0.1:{self.server_port}"
        Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class _SignOnAnswers(BaseHTTPRequestHandler):
    def do_GET(self):
        url = self.server.url
        device = {f"{name}_endpoint": f"{url}/odd/{name}" for name in ("device_authorization", "token", "revocation")}
        answers = {
            "/v1/config": {
                "issuer": url,
                "client_id": "c",
                "scopes": ["openid"],
                "tracking_url": "https://mlflow.example",
            },
            "/.well-known/openid-configuration": {"issuer": url, **device},
            "/odd/device_authorization": {
                "device_code": "d",
                "user_code": "U",
                "verification_uri": url,
                "interval": 0,
                "expires_in": 60,
            },
            "/odd/token": {"access_token": "a", "refresh_token": "r", "expires_in": 600},
            "/odd/revocation": {},
        }
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(self.path)
        content = json.dumps(answers.get(self.path, {})).encode()
        self.send_response(200 if self.path in answers else 404)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET  # noqa: N815 - of the base class

    def log_message(self, *arguments):
        pass


@pytest.fixture
def sign_on(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    made = SignOn()
    yield made
    made.shutdown()
    made.server_close()


def test_m15_endpoints_come_from_the_discovery_document(sign_on):
    assert command.main(["login", sign_on.url]) == 0
    assert sign_on.asked[-2:] == ["/odd/device_authorization", "/odd/token"]


def test_m16_sign_in_and_out_on_a_bare_machine(sign_on, capsys):
    assert command.main(["login", sign_on.url]) == 0
    path = credentials.path()
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert json.loads(path.read_text())["access_token"] == "a"
    assert command.main(["logout"]) == 0
    assert not path.exists()
    assert sign_on.asked[-1] == "/odd/revocation"


@pytest.mark.parametrize(
    "arguments",
    [
        *(["whoami"], ["profiles"], ["jobs"], ["token"], ["show", "j1"], ["cancel", "j1"], ["logs", "j1"]),
        ["submit", ".", "--profile", "gpu"],
    ],
)
def test_m17_each_verb_logged_out_is_one_sentence(sign_on, capsys, monkeypatch, tmp_path, arguments):
    (tmp_path / "MLproject").write_bytes(MLPROJECT)
    monkeypatch.chdir(tmp_path)
    assert command.main(arguments) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: you are not signed in: run 'bhive-mltf-client login URL'\n")
    assert sign_on.asked == []


def test_m18_health_depends_on_no_service_behind(whole):
    for name in ("sbatch", "squeue", "scontrol"):
        whole.scheduler.fail(name, "Unable to contact slurm controller")
    whole.mlflow.is_away = whole.provider.is_away = True
    assert whole.client.get("/healthz").json() == {"status": "ok"}
    assert whole.client.get("/readyz").status_code == 200


@pytest.mark.parametrize("query", ["token=x", "api=x", "code=c", "code=c&state=", "code=c&state=x&token=x"])
def test_m19_state_of_a_sign_in_is_always_checked(tmp_path, query):
    from tests.gateway.page import Page

    page = Page(tmp_path)
    answer = page.browser().get(f"/auth/callback?{query}")
    assert answer.status_code == 400
    assert "set-cookie" not in answer.headers
    page.close()


def test_m20_no_route_repeats_a_token_and_nothing_is_in_debug_mode(whole, alice):
    job = submitted(alice)
    token = alice.headers["Authorization"].split()[1]
    for path in ("/v1/me", "/v1/config", f"/v1/submissions/{job}", "/v1/none", "/v1/submissions?limit=x"):
        answer = alice.ask("GET", path)
        assert token not in answer.text
        assert token not in str(answer.headers)
    assert whole.app.debug is False
    images = "".join(path.read_text() for path in (REPOSITORY / "deploy").rglob("*") if path.is_file())
    assert not re.search(r"--debug|--reload|FLASK_DEBUG|flask run", images)


@pytest.mark.parametrize("name", ["account", "partition", "qos", "time", "sbatch", "constraint"])
def test_m21_users_choose_nothing_of_the_site(whole, alice, name):
    digest, _ = alice.upload()
    answer = alice.submit(digest, **{name: "x"})
    assert (answer.status_code, name in answer.json()["detail"]) == (422, True)


def test_m22_wrong_bodies_name_their_field(whole, alice):
    headers = {"Idempotency-Key": "key-00001", "Content-Type": "application/json"}
    for body, pointer in ((b"{", "/body"), (b"[]", "/body"), (b'{"project": "' + b"0" * 64 + b'"}', "/body/profile")):
        answer = alice.ask("POST", "/v1/submissions", content=body, headers=headers)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"].startswith(pointer)


def test_m23_packer_takes_regular_files_only_and_no_secrets(tmp_path):
    (tmp_path / "a.py").touch()
    for name in ("venv1", "venv2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pyvenv.cfg").touch()
        (tmp_path / name / "big.py").touch()
    assert [name for name, _ in packing.collect(tmp_path)] == ["a.py"]
    for make, name in (
        (lambda path: path.symlink_to("nowhere"), "broken"),
        (os.mkfifo, "pipe"),
        (lambda path: path.write_text("TOKEN=x"), ".env"),
    ):
        make(tmp_path / name)
        with pytest.raises(ClientError, match=re.escape(name)):
            packing.collect(tmp_path)
        (tmp_path / name).unlink()


def test_m24_env_file_of_a_project_changes_nothing(sign_on, tmp_path, monkeypatch):
    assert not {"dotenv", "decouple", "environs"} & set(imported_names())
    command.main(["login", sign_on.url])
    (tmp_path / ".env").write_text("XDG_CONFIG_HOME=/evil\nMLFLOW_TRACKING_URI=https://evil.example\n")
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    assert credentials.read().gateway == sign_on.url
    assert dict(os.environ) == before


def test_m25_server_decides_where_runs_are_kept(whole, alice):
    digest, _ = alice.upload()
    for name in ("tracking_uri", "tracking_url"):
        assert alice.submit(digest, **{name: "sqlite:////home/alice/mlflow.db"}).status_code == 422
    job = submitted(alice)
    whole.until(job, "queued")
    assert whole.plan(job).tracking_url == whole.settings.tracking_url


def test_m26_token_goes_to_the_tracking_server_of_the_gateway_only(sign_on, monkeypatch):
    import requests

    from bhive_mltf_client import tracking_auth

    command.main(["login", sign_on.url])
    signer = tracking_auth._TrackingToken()
    monkeypatch.setattr(signer, "_fresh", lambda: "secret")
    for url, expected in (
        ("https://mlflow.example/api", "Bearer secret"),
        ("http://mlflow.example/api", None),
        ("https://mlflow.example.evil.org/api", None),
        ("https://mlflow.example@evil.org/api", None),
    ):
        request = requests.Request("GET", url).prepare()
        assert signer(request).headers.get("Authorization") == expected, url


def test_m27_token_of_a_job_is_made_at_its_start_and_renewed(whole):
    short = User(whole.client, whole.provider, "alice", exp=int(time.time()) + 5)
    job = submitted(short)
    whole.until(job, "queued")
    path = whole.settings.job_folder(job) / "private" / "token"

    def claims():
        return json.loads(base64.urlsafe_b64decode(path.read_text().split(".")[1] + "=="))

    first = claims()
    assert first["exp"] > time.time() + 0.9 * whole.settings.token_s
    assert (first["kind"], first["run"]) == ("job", whole.row(job).run_id)
    old = time.time() - whole.settings.token_s * 0.6
    os.utime(path, (old, old))
    whole.steps.do(whole.row(job))
    assert claims()["jti"] != first["jti"]


def test_m28_success_of_a_project_stays_one(whole, alice, tmp_path):
    code, _ = launch(tmp_path, "pass")
    assert code == 0
    assert not (tmp_path / "logs" / "rank_0.error.json").exists()
    job = submitted(alice)
    whole.until(job, "queued")
    assert whole.end(job, "COMPLETED").state == "succeeded"
    assert whole.run(job)["status"] == "FINISHED"


def test_m29_run_and_tracking_server_have_their_own_variables(tmp_path):
    names = ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID")
    _, log = launch(tmp_path, f"import os; print(*(os.environ[name] for name in {names}))")
    run, tracking, experiment = log.read_text().split()
    assert (run, experiment) == ("the-run", "1")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{20,}", tracking)


def test_m30_two_jobs_share_no_folder(whole, alice):
    plans = []
    for number in range(2):
        job = submitted(alice, f"key-0000{number}")
        whole.until(job, "queued")
        plans.append(whole.plan(job))
    for name in ("work", "logs", "token_file"):
        assert len({getattr(plan, name) for plan in plans}) == 2
    assert not any(getattr(plan, name).startswith("/tmp/pyenv") for plan in plans for name in ("work", "environment"))


def test_m31_no_chore_prints_credentials():
    text = "".join((REPOSITORY / name).read_text() for name in (".ci/run", "Makefile"))
    assert not re.search(r"base64|set -x|registry login|docker login|podman login|cat .*(token|auth|cred)", text)


def test_m32_images_start_modules_that_are_there():
    named = []
    for path in (REPOSITORY / "deploy").rglob("*"):
        if path.is_file():
            named += re.findall(r'-m"?,? "?(bhive_mltf[\w.]*)', path.read_text())
    assert len(named) >= 4
    assert [name for name in set(named) if importlib.util.find_spec(name) is None] == []
    from bhive_mltf.gateway import __main__ as program

    with pytest.raises(SystemExit) as ended:
        program.main(["--config", "x.yml", "serve", "--help"])
    assert ended.value.code == 0


def test_m33_help_of_the_client_is_light():
    code = (
        "import sys; from bhive_mltf_client import main\n"
        "try: main.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'mlflow', 'fastapi', 'flask', 'jwt', 'sqlalchemy', 'torch', 'gunicorn', 'httpx'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY / "client")}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, "submit" in done.stdout) == (0, True), done.stderr


def test_m34_rules_are_tested_without_a_container_engine():
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__))
    for wanted in (
        "test_identity_table",
        "test_jobs_of_another_person_are_not_there",
        "test_nothing_is_lost_and_nothing_doubled",
        "test_cancelled_job_ends_in_a_minute_its_run_killed",
    ):
        assert f"def {wanted}(" in text
    assert not re.search(r"which\(.(docker|podman)", text)


def test_each_finding_has_its_test():
    found = re.findall(r"(?m)^def test_m(\d\d)_", Path(__file__).read_text())
    assert sorted(map(int, found)) == list(range(1, 35))
