"""What a hostile project can do from inside: nothing of all this."""

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bhive_mltf.gateway.inside.plan import LaunchPlan
from tests.gateway import needs
from tests.gateway.stack import REPOSITORY
from tests.helpers.waiting import wait_for

pytestmark = pytest.mark.gateway
CANARY = "canary-7f3a"


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

    def run(self, code, network="own", timeout=60):
        """Run a project of one file; the finished process."""
        (self.job / "work" / "secret").unlink(missing_ok=True)
        (self.job / "work" / "main.py").write_text(code)
        plan = LaunchPlan(
            argv=("python", "main.py"),
            work=str(self.job / "work"),
            logs=str(self.job / "logs"),
            runtime="bubblewrap",
            network=network,
            environment=sys.prefix,
            read_only=(sys.base_prefix,),
            tracking_url=f"http://127.0.0.1:{self.upstream.server_port}",
            token_file=str(self.job / "private" / "token"),
            run_id="run",
            experiment_id="1",
        )
        path = self.job / "private" / "launch.json"
        path.write_text(plan.to_json())
        return subprocess.run(
            [sys.executable, "-m", "bhive_mltf.gateway.inside.launch", str(path)],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "CANARY": CANARY, "SLURM_CONF": "/etc/slurm.conf"},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
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


HOSTILE = {
    "folder of another job": "print(open('{other}/work/secret').read())",
    "its own token": "print(open('{job}/private/token').read())",
    "launch plan": "print(open('{job}/private/launch.json').read())",
    "forged outcome": "open('{job}/slurm/outcome.json', 'w').write('{{}}'); print(WON)",
    "forged word of a rank": "open('/job/../logs/rank_0.error.json', 'w').write('{{}}'); print(WON)",
    "environment of all processes": (
        "import glob\nfor p in glob.glob('/proc/*/environ'):\n    print(open(p, errors='replace').read())"
    ),
    "command lines of the host": (
        "import glob\nfor p in glob.glob('/proc/[0-9]*/cmdline'):\n    if 'pytest' in open(p).read(): print(WON)"
    ),
    "home of root": "import os\nassert set(os.listdir('/root')) - {seen}\nprint(WON)",
    "password file of the host": "assert 'daemon' in open('/etc/passwd').read()\nprint(WON)",
    "munge": "import os\nos.listdir('/run/munge')\nprint(WON)",
    "another job by sbatch": (
        "import subprocess\nsubprocess.run(['sbatch', '--wrap', 'true'], check=True)\nprint(WON)"
    ),
    "signal to a process of the host": "import os\nos.kill({pid}, 0)\nprint(WON)",
    "namespace of its own": "import os\nos.unshare(0x10000000)\nprint(WON)",
    "unshare": "import subprocess\nsubprocess.run(['unshare', '-U', 'true'], check=True)\nprint(WON)",
    "mount": "import subprocess\nsubprocess.run(['mount', '-t', 'tmpfs', 'x', '/tmp'], check=True)\nprint(WON)",
    "mount of the host by chroot": "import os\nos.chroot('/proc/1/root')\nprint(WON)",
    "root of process 1": "import os\nassert set(os.listdir('/proc/1/root/root')) - {seen}\nprint(WON)",
    "write to /usr": "open('/usr/bin/evil', 'w')\nprint(WON)",
    "write to the environment": "open('{prefix}/evil', 'w')\nprint(WON)",
    "write beside /job": "open('/evil/x', 'w')\nprint(WON)",
    "change of the first program": "open('/run/mltf/spawn.py', 'a')\nprint(WON)",
    "disk device": "import os\nos.mknod('/tmp/sda', 0o60600, os.makedev(8, 0))\nprint(WON)",
    "kernel memory": "open('/dev/mem', 'rb')\nprint(WON)",
    "server of the host": ("import socket\nsocket.create_connection(('127.0.0.1', {port}), 3)\nprint(WON)"),
    "the internet": "import socket\nsocket.create_connection(('192.0.2.1', 80), 3)\nprint(WON)",
    "capability": (
        "status = open('/proc/self/status').read()\n"
        "assert 'CapEff:\\t0000000000000000' not in status or 'NoNewPrivs:\\t1' not in status\nprint(WON)"
    ),
    "user of a set-uid program": "import os\nos.setuid(0)\nprint(WON)",
    "terminal of the host": "open('/dev/tty', 'w').write('x')\nprint(WON)",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_project_gets_nothing(node, name):
    facts = {
        "other": node.other,
        "job": node.job,
        # an installation of Python below /root is bound by its own path
        "seen": set(Path(sys.base_prefix).parts),
        "pid": os.getpid(),
        "prefix": sys.prefix,
        "port": node.upstream.server_port,
    }
    # in two parts, so that no traceback shows it
    won = f"WON = {CANARY[:4]!r} + {CANARY[4:]!r}\n"
    done = node.run("print('begun', flush=True)\n" + won + HOSTILE[name].format(**facts))
    assert done.stdout.startswith("begun"), done.stderr
    assert CANARY not in done.stdout + done.stderr
    word = node.job / "logs" / "rank_0.error.json"
    assert done.returncode == 0 or json.loads(word.read_text())["by_user"] is True


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
time.sleep(0.5)
"""
    assert node.run(code).returncode == 0
    alive = node.job / "work" / "out" / "alive"
    size = alive.stat().st_size
    time.sleep(1)
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
time.sleep(1)
print(sum(name.startswith("mine") for name in os.listdir("/tmp")), os.listdir("/dev/shm"))
"""
    results = []
    threads = [threading.Thread(target=lambda n=n: results.append(n.run(code))) for n in (node, second)]
    for one in threads:
        one.start()
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
