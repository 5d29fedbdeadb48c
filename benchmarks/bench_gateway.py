"""The gateway under load: latencies, memory of a large upload, the relay, and the size of the client.

    python benchmarks/bench_gateway.py [--users 200] [--seconds 60] [--database sqlite] [--upload-mib 1024] [--client]

API and worker are the real processes, with a real PostgreSQL (or SQLite). SLURM, the tracking server and the sign-on
provider are stubs; client, stubs and servers share this machine. Every user reads every 5 s (list, job, log, limits in
turn) and hands in one project at a random moment. The last line is one JSON object; times in milliseconds:

errors : answers other than 200 and 201, and calls without an answer. Goal: 0.
read_p95, submit_p95 : of all reads; of POST /v1/submissions. Goals: 300 and 800. upload_p95: of the small projects.
list_of_10000 : median of 40 calls for the newest 200 of 10,000 jobs, and page_of_10000 of the web page. Goal: 100.
upload_growth_mb, upload_mb_per_s : private memory of the API over what it had, while a project of `--upload-mib`
    comes in. Goal: 30 MB.
relay_ms : what the relay of a job adds to a call, medians of 300 calls with and without it. Goal: 5.
api_cpu_s, worker_cpu_s : of the load, with the processes that they start.
client_mb, client_help_s : with `--client` (needs the package index): wheels that `pip install bhive-mltf-client` loads,
    and `--help` in an environment that has nothing else. Goals: 25 and 0.3.
"""

# what the tests offer has no types
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from common import conditions, private_mb

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from bhive_mltf.gateway.identity.provider import Caller
from bhive_mltf.gateway.inside.relay import Relay
from bhive_mltf.gateway.store import queries, web_sessions
from bhive_mltf.gateway.store.database import Database
from bhive_mltf.gateway.store.tables import Project, State, Submission
from tests.gateway.keys import FakeProvider
from tests.gateway.postgres import Postgres
from tests.gateway.stack import Stack, wait_for_url
from tests.helpers.fake_scheduler import FakeScheduler

MIB = 2**20
PROJECT = {"MLproject": b"name: load\nentry_points:\n  main:\n    command: python a.py\n", "a.py": b"print(1)\n"}


class Site:
    """A gateway with stubs around it."""

    def __init__(self, folder: Path, url: str, upload_mib: int) -> None:
        limits = {"archive_bytes": (upload_mib + 1) * MIB}
        self.stack = Stack(folder, database_url=url, limits=limits, tick_s=5, submit_timeout_s=30)
        self.stack.config.with_name("facility.yml").write_text("hours: 1\nsignal_seconds: 30\naccounting: false\n")
        self.scheduler = FakeScheduler(folder / "bin").install()
        self.keys = FakeProvider()
        self.database = Database(url)

    def start(self) -> None:
        ports = [str(self.stack.ports[name]) for name in ("provider", "mlflow")]
        command = [sys.executable, str(ROOT / "benchmarks" / "gateway_stubs.py"), *ports]
        self.stubs = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
        assert self.stubs.stdin is not None
        self.stubs.stdin.write(json.dumps({"keys": [self.keys.public("k1")]}) + "\n")
        self.stubs.stdin.flush()
        wait_for_url(f"{self.stack.issuer}/jwks")
        self.stack.start_api()
        path = f"{self.scheduler.folder}{os.pathsep}{os.environ['PATH']}"
        command = [sys.executable, "-m", "bhive_mltf.gateway", "--config", str(self.stack.config), "worker"]
        self.stack.start("worker", command, PATH=path)

    def stop(self) -> None:
        self.stack.stop_all()
        self.stubs.kill()
        self.stubs.wait()
        self.database.close()

    def cpu_s(self, name: str) -> float:
        """CPU seconds of a process, and of its children that have ended."""
        words = Path(f"/proc/{self.stack.processes[name].pid}/stat").read_text().rsplit(")", 1)[1].split()
        return sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK")

    def headers(self, person: str) -> dict[str, str]:
        token = self.keys.token(iss=self.stack.issuer, sub=person, client_id="mltf-cli", exp=int(time.time()) + 7200)
        return {"Authorization": f"Bearer {token}"}


def small_project() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in PROJECT.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


class Load:
    """Users who read and hand in, each with an own connection."""

    def __init__(self, site: Site, users: int, seconds: float) -> None:
        self.site, self.users, self.seconds = site, users, seconds
        self.spent: dict[str, list[float]] = defaultdict(list)
        self.errors: list[str] = []
        self.project = small_project()
        self.digest = hashlib.sha256(self.project).hexdigest()

    async def run(self) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=self.site.stack.url, timeout=60, limits=limits) as client:
            await asyncio.gather(*(self.user(client, number) for number in range(self.users)))

    async def user(self, client: httpx.AsyncClient, number: int) -> None:
        dice = random.Random(number)
        headers = self.site.headers(f"user{number}")
        start = time.monotonic()
        hands_in = start + self.seconds * dice.uniform(0.1, 0.8)
        places = ["/v1/submissions", "/v1/me"]
        moment = start + dice.uniform(0, 5)
        while moment < start + self.seconds:
            if moment > hands_in:
                await asyncio.sleep(max(0, hands_in - time.monotonic()))
                hands_in = float("inf")
                place = f"/v1/projects/{self.digest}"
                await self.ask(client, "upload", "PUT", place, headers, content=self.project)
                keyed = {**headers, "Idempotency-Key": f"bench-{number:06}"}
                asked = {"project": self.digest, "profile": "lab"}
                job = await self.ask(client, "submit", "POST", "/v1/submissions", keyed, json=asked)
                if job is not None:
                    places += [f"/v1/submissions/{job['id']}", f"/v1/submissions/{job['id']}/log"]
            await asyncio.sleep(max(0, moment - time.monotonic()))
            await self.ask(client, "read", "GET", places[int(moment) % len(places)], headers)
            moment += 5

    async def ask(
        self, client: httpx.AsyncClient, kind: str, method: str, path: str, headers: dict[str, str], **given: Any
    ) -> Any:
        begun = time.perf_counter()
        try:
            answer = await client.request(method, path, headers=headers, **given)
        except httpx.HTTPError as error:
            self.errors.append(f"{method} {path}: {type(error).__name__}")
            return None
        self.spent[kind].append((time.perf_counter() - begun) * 1000)
        if answer.status_code not in (200, 201):
            self.errors.append(f"{method} {path}: {answer.status_code} {answer.text[:200]}")
            return None
        return answer.json() if kind != "read" else None

    def results(self) -> dict[str, float]:
        found: dict[str, float] = {"errors": len(self.errors), "calls": sum(map(len, self.spent.values()))}
        for kind, spent in self.spent.items():
            found[f"{kind}_median"] = statistics.median(spent)
            found[f"{kind}_p95"] = sorted(spent)[int(0.95 * len(spent))]
        return found


def listing(site: Site) -> dict[str, float]:
    """The newest jobs of somebody who has 10,000."""
    caller = Caller(site.stack.issuer, "many", "mltf-cli", "many", frozenset({"user"}), 0.0)
    made: dict[str, Any] = {"request_hash": "", "digest": "0" * 64, "entry_point": "main", "name": "a job"}
    made |= {"params": {"a": "b"}, "argv": ["python"]}
    made |= {"profile": "lab", "hours": 1.0, "state": State.SUCCEEDED.value}
    with site.database.writing() as session:
        owner = queries.owner_of(session, caller)
        session.add(Project(digest="0" * 64, bytes=0, files=1, name="", entry_points={}))
        session.flush()
        now = time.time()
        rows = [Submission(owner=owner.id, idem_key=f"{n}", created_at=now - n, **made) for n in range(10_000)]
        session.add_all(rows)
        secret = web_sessions.begin(session, owner.id, ["user"], 3600)
    headers = site.headers("many")
    cookies = {"mltf-session": secret}
    found = {}
    with httpx.Client(base_url=site.stack.url, timeout=60, cookies=cookies) as client:
        for figure, place in (("list_of_10000", "/v1/submissions?limit=200"), ("page_of_10000", "/jobs")):
            spent = []
            for _ in range(40):
                begun = time.perf_counter()
                assert client.get(place, headers=headers).status_code == 200
                spent.append((time.perf_counter() - begun) * 1000)
            found[figure] = statistics.median(spent)
    return found


def large_upload(site: Site, mib: int) -> dict[str, float]:
    """One project of this size, and what it does to the memory of the API."""
    path = site.stack.folder / "large.tar"
    sizes = [min(128, mib - first) for first in range(0, mib, 128)]
    block = random.Random(1).randbytes(MIB)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number, size in enumerate(sizes):
            member = tarfile.TarInfo(f"part{number}.bin")
            member.size = size * MIB - 1024  # the headers belong to the whole
            archive.addfile(member, _Repeated(block, member.size))
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(MIB):
            digest.update(part)
    api = site.stack.processes["api"].pid
    before, peak, done = private_mb(api), [0.0], threading.Event()

    def look() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], private_mb(api))

    watcher = threading.Thread(target=look)
    watcher.start()
    begun = time.perf_counter()
    with path.open("rb") as file:
        place = f"{site.stack.url}/v1/projects/{digest.hexdigest()}"
        answer = httpx.put(place, content=_parts(file), headers=site.headers("large"), timeout=600)
    spent = time.perf_counter() - begun
    done.set()
    watcher.join()
    assert answer.status_code == 201, answer.text
    return {"upload_growth_mb": peak[0] - before, "upload_mb_per_s": path.stat().st_size / 1e6 / spent}


class _Repeated(io.RawIOBase):
    def __init__(self, block: bytes, size: int) -> None:
        self.block, self.left = block, size

    def read(self, size: int = -1) -> bytes:
        part = self.block[: min(size, self.left)]
        self.left -= len(part)
        return part


def _parts(file: Any) -> Iterator[bytes]:
    while part := file.read(MIB // 4):
        yield part


def relay(site: Site) -> dict[str, float]:
    """What the relay adds to a call of the tracking server."""
    token = site.stack.folder / "token"
    token.write_text("any")
    place = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=none"
    with Relay(site.stack.folder / "relay", site.stack.tracking, token).running() as one:
        transport = httpx.HTTPTransport(uds=str(site.stack.folder / "relay"))
        with (
            httpx.Client(base_url=site.stack.tracking) as straight,
            httpx.Client(base_url=f"http://relay/{one.secret}", transport=transport) as through,
        ):
            spent: dict[str, list[float]] = {"straight": [], "through": []}
            for _ in range(300):
                for name, client in (("straight", straight), ("through", through)):
                    begun = time.perf_counter()
                    assert client.get(place).status_code == 404
                    spent[name].append((time.perf_counter() - begun) * 1000)
    medians = {name: statistics.median(one) for name, one in spent.items()}
    return {"relay_ms": medians["through"] - medians["straight"]}


def client() -> dict[str, float]:
    """The client as a user installs it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = shutil.copytree(ROOT / "client", folder / "source")
        pip = [sys.executable, "-m", "pip", "--quiet"]
        subprocess.run([*pip, "wheel", "--wheel-dir", str(folder / "wheels"), str(source)], check=True)
        wheels = list((folder / "wheels").glob("*.whl"))
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
        python = folder / "env" / "bin" / "python"
        command = [*pip, "--python", str(python), "install", "--no-index", "--no-deps", *map(str, wheels)]
        subprocess.run(command, check=True)
        program, spent = python.with_name("bhive-mltf-client"), []
        for _ in range(7):
            begun = time.perf_counter()
            done = subprocess.run([program, "--help"], capture_output=True, check=True)
            spent.append(time.perf_counter() - begun)
            assert b"submit" in done.stdout
        assert not [one for one in wheels if one.name.startswith("torch")]
        return {"client_mb": sum(one.stat().st_size for one in wheels) / 1e6, "client_help_s": statistics.median(spent)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--database", choices=["postgresql", "sqlite"], default="postgresql")
    parser.add_argument("--upload-mib", type=int, default=1024)
    parser.add_argument("--client", action="store_true")
    parser.add_argument("--data", help="not used: `make bench` gives it to all programs")
    options = parser.parse_args()
    conditions([])
    folder = Path(tempfile.mkdtemp(prefix="mltf-load-", dir="/tmp"))
    server = Postgres() if options.database == "postgresql" else None
    site = Site(folder, server.new() if server is not None else f"sqlite:///{folder}/gateway.db", options.upload_mib)
    try:
        site.start()
        load = Load(site, options.users, options.seconds)
        before = {name: site.cpu_s(name) for name in ("api", "worker")}
        asyncio.run(load.run())
        used = {f"{name}_cpu_s": site.cpu_s(name) - spent for name, spent in before.items()}
        for one in load.errors[:10]:
            print(one)
        print(f"jobs of the stub of SLURM: {len(site.scheduler.jobs)} of {options.users}")
        results = {name: getattr(options, name) for name in ("database", "users", "seconds")} | load.results() | used
        results |= relay(site) | listing(site) | large_upload(site, options.upload_mib)
        if options.client:
            results |= client()
    finally:
        site.stop()
        if server is not None:
            server.close()
        if not os.environ.get("MLTF_KEEP"):
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({name: round(one, 3) if isinstance(one, float) else one for name, one in results.items()}))


if __name__ == "__main__":
    main()
