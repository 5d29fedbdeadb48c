"""Tokens: read from a file at each request, and in nothing that is recorded."""

import logging
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest

from bhive_mltf.errors import TrackingError
from bhive_mltf.tracking import attach, auth, connection, prepare

CANARY = "canary-3f9a1c77d2"


class Server(BaseHTTPRequestHandler):
    """Answers every request, and remembers what signed it."""

    seen: ClassVar = []

    def do_GET(self):
        self.seen.append(self.headers.get("Authorization"))
        body = b'{"experiments": []}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture
def address():
    Server.seen = []
    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text(f"{CANARY}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def signed(monkeypatch, token_file):
    """MLflow signs with the token file, installed entry point or not."""
    connection.load()
    from mlflow.tracking.request_auth import registry

    known = registry._request_auth_provider_registry
    if auth.NAME not in [provider.get_name() for provider in known]:
        monkeypatch.setattr(known, "_registry", [*known._registry, auth.TokenFileProvider()])
    monkeypatch.setenv("MLFLOW_TRACKING_AUTH", auth.NAME)
    monkeypatch.setenv(auth.FILE_VARIABLE, str(token_file))


@pytest.mark.usefixtures("signed")
def test_a_renewed_token_signs_the_next_request(address, token_file):
    client = connection.connect(address)
    client.search_experiments()
    token_file.write_text("another-token-of-later")
    client.search_experiments()
    assert Server.seen == [f"Bearer {CANARY}", "Bearer another-token-of-later"]


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (None, 0o600, "cannot be read"),
        ("", 0o600, "does not hold one token"),
        ("two words", 0o600, "does not hold one token"),
        (CANARY, 0o644, "chmod 600"),
    ],
)
def test_a_token_file_that_cannot_be_used(tmp_path, content, mode, said):
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(TrackingError, match=said) as caught:
        auth.read_token(path)
    assert CANARY not in str(caught.value)


@pytest.mark.usefixtures("signed")
def test_an_unreadable_token_file_ends_no_training(address, token_file, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    token_file.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        assert prepare(tmp_path / "training", data_path=tmp_path, run_name="t") is not None
    assert "chmod 600" in caplog.text


def everything_below(folder):
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", auth.FILE_VARIABLE])
def test_tokens_are_in_nothing_that_is_recorded(data_path, tmp_path_factory, monkeypatch, variable, caplog):
    secret = tmp_path_factory.mktemp("secret") / "token"
    secret.write_text(CANARY)
    monkeypatch.setenv(variable, str(secret) if variable == auth.FILE_VARIABLE else CANARY)
    directory = data_path / "training"
    text = f"curl -H 'Bearer {CANARY}' https://me:{CANARY}@host/x"
    prepare(directory, data_path=data_path, run_name="t", params={"list": [text]}, tags={"command": text})
    with attach(directory) as run:
        run.tags({"a": text})
        run.params({"b": {"c": text}})
        run.json({"command": text}, "environment.json")
        run.text(text, "code.patch")
        run.dataset(name="v", digest="d", source=f"root://me:{CANARY}@host//file", context="training")
        run.finish("FINISHED")
    stored = everything_below(data_path)
    assert b"curl" in stored
    assert CANARY.encode() not in stored
    assert CANARY not in caplog.text


def test_what_is_hidden_and_what_is_not():
    environment = {"MY_TOKEN": "abcdefgh", "DB_PASSWORD": "short", "A_TOKEN_FILE": "/x/y", "HOME": "/home/abc"}
    assert auth.secrets(environment) == ("abcdefgh",)
    assert auth.without_secrets({"a": ["https://u:p@h/x", 1, None]}) == {"a": ["https://***@h/x", 1, None]}
    assert auth.without_secrets("root://eos.cern.ch//store") == "root://eos.cern.ch//store"


def test_the_wheel_names_the_provider():
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["mlflow.request_auth_provider"][auth.NAME].partition(":")
    assert (module, name) == (auth.__name__, auth.TokenFileProvider.__name__)
    assert re.fullmatch(r"[a-z-]+", auth.NAME)
