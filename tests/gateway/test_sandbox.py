"""What a hostile project can do from inside: nothing of all this."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bhive_mltf.gateway.inside.plan import LaunchPlan
from bhive_mltf.gateway.inside.relay import Relay
from tests.gateway import hostile, needs
from tests.gateway.stack import REPOSITORY
from tests.helpers.waiting import wait_for

pytestmark = pytest.mark.gateway
CANARY = hostile.CANARY


class Upstream(ThreadingHTTPServer):
    """A tracking server that keeps what it was asked."""

    def __init__(self):
        self.seen = []
        super().__init__(("127.0.0.1", 0), _Answers)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append((self.path, dict(self.headers), body))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST  # noqa: N815 - of the base class

    def log_message(self, *arguments):
        pass


class Node:
    """A spool with the folders of two jobs, and a launcher for one of them."""

    def __init__(self, folder):
        needs.program("bwrap", "apt-get install bubblewrap")
        self.folder, self.job, self.other = folder, folder / "jobs" / "mine", folder / "jobs" / "other"
        for job in (self.job, self.other):
            for name in ("work/out", "private", "logs", "slurm"):
                (job / name).mkdir(parents=True)
            (job / "private" / "token").write_text(f"token-{CANARY}")
            (job / "work" / "secret").write_text(f"data-{CANARY}")
        self.upstream = Upstream()

    def close(self):
        self.upstream.shutdown()
        self.upstream.server_close()

    def run(self, code="", network="own", timeout=60, **options):
        """Run a project of one file, that which is there if empty; the finished process."""
        process = self.start(code, network, **options)
        out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self, code="", network="own", python=sys.executable, path=REPOSITORY, user=None, stderr=-1, **changes):
        """Start the launcher, of `path`, by this interpreter and user, with a plan that has changes."""
        (self.job / "work" / "secret").unlink(missing_ok=True)
        if code:
            (self.job / "work" / "main.py").write_text(code)
        values = {
            "argv": ("python" if python == sys.executable else python, "main.py"),
            "work": str(self.job / "work"),
            "logs": str(self.job / "logs"),
            "runtime": "bubblewrap",
            "network": network,
            "environment": sys.prefix,
            "read_only": (sys.base_prefix,),
            "tracking_url": f"http://127.0.0.1:{self.upstream.server_port}",
            "token_file": str(self.job / "private" / "token"),
            "run_id": "run",
            "experiment_id": "1",
        }
        plan = self.job / "private" / "launch.json"
        plan.write_text(LaunchPlan(**{**values, **changes}).to_json())
        if user is not None:
            for one in (plan, self.job / "work" / "main.py"):
                os.chown(one, user, -1)
        return subprocess.Popen(
            [python, "-m", "bhive_mltf.gateway.inside.launch", str(plan)],
            env={**os.environ, "PYTHONPATH": str(path), "CANARY": CANARY, "SLURM_CONF": "/etc/slurm.conf"},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            **({"user": user, "group": user, "extra_groups": []} if user is not None and os.getuid() == 0 else {}),
        )


@pytest.fixture
def node(tmp_path):
    made = Node(tmp_path)
    yield made
    made.close()


def test_project_runs_with_its_files_and_variables(node):
    code = """
import json, os
open("out/made", "w").write("x")
print(json.dumps([sorted(os.environ), os.getcwd(), os.uname().nodename, os.getuid(), sorted(os.listdir("/"))]))
"""
    done = node.run(code)
    assert done.returncode == 0, done.stderr
    names, here, host, user, root = json.loads(done.stdout)
    assert (here, host, user) == ("/job", "job", 1000)
    assert (node.job / "work" / "out" / "made").read_text() == "x"
    assert {"MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "MLTF_OUTPUT_DIR"} <= set(names)
    assert not [name for name in names if name.startswith(("SLURM", "CANARY", "PYTHONPATH"))]
    assert not {"home", "mnt", "srv", "var", "sys", "boot"} & set(root) - set(Path(sys.base_prefix).parts)


@pytest.fixture(scope="module")
def attempts(tmp_path_factory):
    """What each attempt of a hostile project printed: they run one after the other in one sandbox."""
    node, name = Node(tmp_path_factory.mktemp("hostile")), f"mltf-test-{os.getpid()}"
    hostile.add_key()
    (node.folder / "blobs").mkdir()
    (node.folder / "blobs" / "secret").write_text(CANARY)
    (node.folder / "key.pem").write_text(CANARY)
    other = subprocess.Popen([sys.executable, "-c", "input()", name], stdin=subprocess.PIPE)
    munge, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    munge.bind(str(node.folder / "munge"))
    abstract.bind(f"\0{name}")
    for one in (munge, abstract):
        one.listen()
    known = hostile.facts(
        spool=node.folder,
        job=node.job,
        other=node.other,
        secrets=[node.folder / "key.pem", node.job / "private" / "token", *node.folder.glob("jobs/*/private/token")],
        munge=str(node.folder / "munge"),
        port=node.upstream.server_port,
        pid=other.pid,
        name=name,
    )
    hostile.write(node.job / "work", known)
    relay = Relay(Path(tempfile.mkdtemp(prefix="mltf-")) / "relay", "http://127.0.0.1:1", Path("token"))
    try:
        done = node.run(timeout=300)
    finally:
        other.communicate(b"\n")
        for one in (munge, abstract):
            one.close()
        relay.server_close()
        shutil.rmtree(Path(relay.server_address).parent)
        node.close()
    assert done.returncode == 0, done.stderr
    assert CANARY not in done.stderr
    return hostile.answers(done.stdout)


@pytest.mark.parametrize("name", hostile.ATTEMPTS)
def test_hostile_project_gets_nothing(attempts, name):
    assert attempts[name].startswith("begun"), attempts[name]
    assert CANARY not in attempts[name]


FILLS = {
    "a file": "with open('out/fill', 'wb') as file:\n    while True: write(file)",
    "removed files": "file = open('out/fill', 'wb')\nos.remove('out/fill')\nwhile True: write(file)",
    "many files": "n = 0\nwhile n < 10**5:\n    n += 1\n    open(f'out/{n}', 'w')\ntime.sleep(60)",
    "its log": "while True: write(sys.stderr.buffer)",
    # what lies behind a link is not counted, and a closed folder hides nothing for long
    "links": "os.symlink('/usr', 'out/usr')\ntime.sleep(3)\nsys.exit(7)",
}


@pytest.mark.parametrize("name", FILLS)
def test_project_that_fills_the_disk_is_ended(node, name):
    code = """import os, sys, time
written = 0
def write(file):
    global written
    file.write(b"x" * 2**20)
    file.flush()
    written += 2**20
    # so much at the most, should nobody end this
    if written > 200 * 2**20: sys.exit(3)
    time.sleep(0.02)
"""
    with (node.job / "logs" / "rank_0.log").open("wb") as log:
        done = node.run(code + FILLS[name], disk_bytes=30_000_000, stderr=log)
    word = json.loads((node.job / "logs" / "rank_0.error.json").read_text())["message"]
    if name == "links":
        assert done.returncode == 7
    else:
        assert done.returncode == 137
        assert "GB on disk, more than the 0.03 GB of a job" in word


def test_scratch_folders_have_limits(node):
    done = node.run(
        "import os\nfor f in ('/tmp', '/dev/shm'):\n    s = os.statvfs(f)\n    print(s.f_blocks * s.f_frsize)"
    )
    assert [int(line) for line in done.stdout.split()] == [4 * 2**30, 8 * 2**30]


BOMB = """
import os, sys, time
made = 0
try:
    while made < 500:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        made += 1
except OSError as error:
    print(type(error).__name__, made < 60, flush=True)
    sys.exit(5)
"""


def test_project_that_forks_without_end_is_stopped():
    # the kernel does not count processes of root, who runs no job of a site
    folder = Path(tempfile.mkdtemp(prefix="mltf-fork-", dir="/tmp"))
    user = 65534 if os.getuid() == 0 else os.getuid()
    node, python = Node(folder / "spool"), needs.program("/usr/bin/python3", "apt-get install python3")
    try:
        shutil.copytree(REPOSITORY / "bhive_mltf" / "gateway" / "inside", folder / "bhive_mltf" / "gateway" / "inside")
        (folder / "env" / "bin").mkdir(parents=True)
        (folder / "env" / "bin" / "python").symlink_to(python)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, user, -1, follow_symlinks=False)
        before = time.monotonic()
        plan = {"environment": str(folder / "env"), "read_only": (), "processes": 60}
        done = node.run(BOMB, python=python, path=folder, user=user, **plan)
        assert done.stdout == "BlockingIOError True\n", done.stderr
        assert done.returncode == 5
        # the end of the first program is the end of all
        assert time.monotonic() - before < 30
    finally:
        node.close()
        shutil.rmtree(folder)


STUBBORN = """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR2):
    signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
print("begun", flush=True)
while True:
    open("out/alive", "a").write("x")
    time.sleep(0.05)
"""


def test_project_that_ignores_its_end_is_ended(node):
    launcher = node.start(STUBBORN)
    alive = node.job / "work" / "out" / "alive"
    wait_for(alive.exists)
    launcher.terminate()
    launcher.communicate(timeout=30)
    size = alive.stat().st_size
    time.sleep(0.3)
    assert alive.stat().st_size == size


def test_other_jobs_find_the_relay_but_no_way_through(node, tmp_path):
    (tmp_path / "b").mkdir()
    second = Node(tmp_path / "b")
    first = node.start(
        "import os, time\nprint(os.environ['MLFLOW_TRACKING_URI'], flush=True)\ntime.sleep(60)", "shared"
    )
    port = int(first.stdout.readline().split(":")[2].split("/")[0])
    code = f"""
import urllib.request, urllib.error
for path in ("/", "/api/2.0/x", "/guess/api/2.0/x", "//api", "/%2e%2e/x"):
    try:
        print(urllib.request.urlopen("http://127.0.0.1:{port}" + path, timeout=10).status)
    except urllib.error.HTTPError as error:
        print(error.code)
"""
    done = second.run(code, "shared")
    first.kill()
    first.communicate()
    second.close()
    assert done.stdout.split() == ["404"] * 5, done.stderr
    assert node.upstream.seen == []


def test_daemon_does_not_outlive_its_job(node):
    code = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            open("out/alive", "a").write("x")
            time.sleep(0.05)
    os._exit(0)
while not os.path.exists("out/alive"):
    time.sleep(0.05)
time.sleep(0.2)
"""
    assert node.run(code).returncode == 0
    alive = node.job / "work" / "out" / "alive"
    size = alive.stat().st_size
    time.sleep(0.3)
    assert size == alive.stat().st_size > 0


CALLS = """
import os, urllib.request, urllib.error
uri = os.environ["MLFLOW_TRACKING_URI"]
def ask(path, **headers):
    request = urllib.request.Request(path, b"body", headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, str(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, str(error.headers)
print(ask(uri + "/api/2.0/x?y=%2F1", Authorization="Bearer mine", Cookie="c=1", Host="evil"))
base = uri.rsplit("/", 1)[0]
print(ask(base + "/api/2.0/x"), ask(base + "/guess/api/2.0/x"), ask(base + "/"))
"""


def test_relay_adds_the_token_and_takes_no_other_way(node):
    done = node.run(CALLS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(404") == 3
    ((path, headers, body),) = node.upstream.seen
    assert (path, body) == ("/api/2.0/x?y=%2F1", b"body")
    assert headers["Authorization"] == f"Bearer token-{CANARY}"
    assert headers["Host"] == f"127.0.0.1:{node.upstream.server_port}"
    assert "Cookie" not in headers
    assert CANARY not in done.stdout + done.stderr


def test_token_is_renewed_under_the_running_job(node):
    first = """import time
print(ask(uri + '/'))
while not os.path.exists("go"):
    time.sleep(0.1)
"""
    code = CALLS.replace("print(ask(uri", f"{first}print(ask(uri", 1)
    thread = threading.Thread(target=node.run, args=(code,))
    thread.start()
    wait_for(lambda: node.upstream.seen or not thread.is_alive(), what="the first call")
    (node.job / "private" / "token").write_text("renewed")
    (node.job / "work" / "go").touch()
    thread.join()
    tokens = [headers["Authorization"] for _, headers, _ in node.upstream.seen]
    assert tokens == [f"Bearer token-{CANARY}", "Bearer renewed"]


def test_two_jobs_at_once_do_not_see_each_other(node, tmp_path):
    (tmp_path / "b").mkdir()
    second = Node(tmp_path / "b")
    code = """
import os, time, uuid
open(f"/tmp/mine-{uuid.uuid4()}", "w")
open("out/begun", "w").close()
while not os.path.exists("go"):
    time.sleep(0.05)
print(sum(name.startswith("mine") for name in os.listdir("/tmp")), os.listdir("/dev/shm"))
"""
    results = []
    threads = [threading.Thread(target=lambda n=n: results.append(n.run(code))) for n in (node, second)]
    for one in threads:
        one.start()
    for one in (node, second):
        wait_for((one.job / "work" / "out" / "begun").exists, what="both jobs")
    for one in (node, second):
        (one.job / "work" / "go").touch()
    for one in threads:
        one.join()
    second.close()
    assert [done.stdout for done in results] == ["1 []\n"] * 2


@pytest.mark.parametrize(
    ("code", "expected"), [("import sys; sys.exit(3)", 3), ("import os; os.kill(os.getpid(), 11)", 139)]
)
def test_end_of_the_project_is_told_to_the_batch_step(node, code, expected):
    assert node.run(code).returncode == expected
    word = json.loads((node.job / "logs" / "rank_0.error.json").read_text())
    assert word["kind"] == "ProjectFailed"
    assert ("exit code 3" if expected == 3 else "signal 11") in word["message"]


def test_nothing_is_left_on_the_node(node, tmp_path, monkeypatch):
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    assert node.run("print(1)").returncode == 0
    assert list(Path(place).iterdir()) == []
