"""Tiny packages, and an index of them on the loopback interface: what builds of environments are tested with."""

import base64
import hashlib
import io
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def make_wheel(folder, name, version="1.0", text="", requires=(), script=False, further=None):
    """A wheel with one module of this text, and a script of the package's name that prints the module's `VALUE`.

    further : texts of further files by their paths.
    """
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {one}\n" for one in requires)
    files = {
        f"{name}.py": f"VALUE = {name + version!r}\n\n\ndef main():\n    print(VALUE)\n{text}\n",
        **(further or {}),
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if script:
        files[f"{info}/entry_points.txt"] = f"[console_scripts]\n{name} = {name}:main\n"
    rows = [f"{path},sha256={_digest(content)},{len(content)}" for path, content in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"]) + "\n"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for one, content in files.items():
            archive.writestr(zipfile.ZipInfo(one, (2026, 1, 1, 0, 0, 0)), content)
    return path


def make_source(folder, name, version="1.0", setup="raise SystemExit('was run')"):
    """A source distribution, whose setup.py would be run by whoever builds it."""
    path = folder / f"{name}-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for one, text in (
            ("setup.py", setup),
            ("PKG-INFO", f"Metadata-Version: 1.0\nName: {name}\nVersion: {version}\n"),
        ):
            member = tarfile.TarInfo(f"{name}-{version}/{one}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def locked(*wheels):
    """The lines of a lock of these wheels."""
    rows = []
    for path in wheels:
        name, version = path.name.split("-")[:2]
        rows.append(f"{name}=={version} \\\n    --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n")
    return "".join(rows)


def _digest(text):
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


class Index(ThreadingHTTPServer):
    """The files of a folder as a simple index (PEP 503); `links` are addresses of further files by project."""

    def __init__(self, folder):
        self.folder, self.seen, self.links, self.pause_s = folder, [], {}, 0.0
        super().__init__(("127.0.0.1", 0), _Answers)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/simple"

    daemon_threads = True
    block_on_close = False

    def close(self):
        self.shutdown()
        self.server_close()

    def page(self, project):
        files = [path for path in self.folder.iterdir() if path.name.split("-")[0] == project]
        links = [
            (f"/files/{one.name}#sha256={hashlib.sha256(one.read_bytes()).hexdigest()}", one.name) for one in files
        ]
        rows = [f'<a href="{address}">{name}</a>' for address, name in [*links, *self.links.get(project, ())]]
        return f"<!DOCTYPE html><html><body>{''.join(rows)}</body></html>".encode() if rows else None


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.seen.append(self.path)
        time.sleep(self.server.pause_s)
        kind, name = self.path.strip("/").split("/")[:2]
        path = self.server.folder / name
        is_page = kind == "simple"
        content = self.server.page(name) if is_page else path.read_bytes() if path.is_file() else None
        self.send_response(200 if content is not None else 404)
        self.send_header("Content-Type", "text/html" if is_page else "application/octet-stream")
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content or b"")

    do_HEAD = do_GET  # noqa: N815 - of the base class

    def log_message(self, *arguments):
        pass
