"""A tracking server of a few routes: runs by their tag, as `bhive_mltf.gateway.tracking` asks for them."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class FakeMlflow(ThreadingHTTPServer):
    """Keeps experiments and runs; while `is_away` every call gets 503, which `refused` counts."""

    def __init__(self):
        self.experiments, self.runs, self.is_away, self.refused = {}, {}, False, 0
        self.artifacts = {}
        super().__init__(("127.0.0.1", 0), _Handler)
        self.thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def close(self):
        self.shutdown()
        self.server_close()

    def of(self, submission):
        """The runs of a submission."""
        return [run for run in self.runs.values() if run["tags"].get("mltf.submission") == submission]

    def answer(self, path, asked):
        return self._of_run(self.runs[asked["run_id"]], path, asked) if "run_id" in asked else self._of_all(path, asked)

    def _of_all(self, path, asked):
        if path == "experiments/get-by-name":
            name = asked["experiment_name"]
            known = self.experiments.get(name)
            return (200, {"experiment": {"experiment_id": known}}) if known else (404, {})
        if path == "experiments/create":
            made = self.experiments.setdefault(asked["name"], str(len(self.experiments) + 1))
            return 200, {"experiment_id": made}
        if path == "runs/search":
            tag = asked["filter"].split("'")[1]
            return 200, {"runs": [{"info": {"run_id": run["id"]}} for run in self.of(tag)]}
        assert path == "runs/create"
        run = {"id": f"run{len(self.runs)}", "status": "RUNNING", "params": {}, "statuses": []}
        self.runs[run["id"]] = {**run, "tags": {one["key"]: one["value"] for one in asked["tags"]}}
        return 200, {"run": {"info": {"run_id": run["id"]}}}

    def _of_run(self, run, path, asked):
        if path == "runs/log-batch":
            run["tags"].update({one["key"]: one["value"] for one in asked.get("tags", ())})
            run["params"].update({one["key"]: one["value"] for one in asked.get("params", ())})
            return 200, {}
        if path == "runs/update":
            run["status"] = asked["status"]
            run["statuses"].append(asked["status"])
            return 200, {}
        place = f"mlflow-artifacts:/1/{run['id']}/artifacts"
        return 200, {"run": {"info": {"status": run["status"], "artifact_uri": place}}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # headers and body are two packets, and the second would wait for the first one's answer
    disable_nagle_algorithm = True

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer(urlsplit(self.path).path, json.loads(body or b"{}"))

    def do_PUT(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.server.is_away:
            self.server.artifacts[self.path.removeprefix("/api/2.0/mlflow-artifacts/artifacts/")] = body
        self._send(503 if self.server.is_away else 200, {})

    def do_GET(self):
        parts = urlsplit(self.path)
        self._answer(parts.path, {name: values[0] for name, values in parse_qs(parts.query).items()})

    def _answer(self, path, asked):
        if self.server.is_away:
            self.server.refused += 1
            self._send(503, {})
        else:
            self._send(*self.server.answer(path.split("/mlflow/", 1)[1], asked))

    def _send(self, code, content):
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass
