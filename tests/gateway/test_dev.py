"""`serve --dev`: its sign-on provider, and all of it as somebody starts it who has just installed the package."""

import base64
import hashlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from bhive_mltf.cli import main
from bhive_mltf.errors import ConfigError
from bhive_mltf.gateway.dev import provider as dev
from bhive_mltf.gateway.dev.site import Site
from bhive_mltf.gateway.identity.provider import TokenVerifier
from bhive_mltf.gateway.settings import Provider, load
from bhive_mltf.testing.slurm_lab import packages
from tests.gateway import needs
from tests.gateway.page import TestClient
from tests.gateway.stack import EXAMPLE, Person
from tests.helpers.ports import free_port

ISSUER, REDIRECT = "http://127.0.0.1:8002", "http://127.0.0.1:8000/auth/callback"
WORD = "w" * 43
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(WORD.encode()).digest()).decode().rstrip("=")
ASKED = {"client_id": dev.WEB, "redirect_uri": REDIRECT, "state": "s", "nonce": "n", "code_challenge": CHALLENGE}


@pytest.fixture
def browser():
    with TestClient(dev.make(ISSUER, REDIRECT), base_url=ISSUER, follow_redirects=False) as made:
        yield made


@pytest.fixture
def verifier(browser):
    clients = {"cli_client": dev.CLI, "web_client": dev.WEB}
    settings = Provider(issuer=ISSUER, audiences=(dev.AUDIENCE,), allow_http=True, **clients)
    return TokenVerifier(settings, lambda url: browser.get(urlsplit(url).path).json(), time.time)


def code_of(browser, **changes):
    assert 'name="login"' in browser.get("/authorize", params={**ASKED, **changes}).text
    form = {"login": "ada", "state": "s", "nonce": "n", "code_challenge": CHALLENGE, **changes}
    place = browser.post("/authorize", data=form).headers["location"]
    assert place.startswith(f"{REDIRECT}?")
    return parse_qs(urlsplit(place).query)["code"][0]


def grant(browser, **form):
    answer = browser.post("/token", data={"client_id": dev.WEB, "grant_type": "authorization_code", **form})
    assert answer.status_code == (400 if "error" in answer.json() else 200)
    return answer.json()


def test_page_signs_in_once_with_the_word_it_began_with(browser, verifier):
    code = code_of(browser)
    assert grant(browser, code=code, client_id=dev.CLI, code_verifier=WORD) == {"error": "invalid_grant"}
    found = grant(browser, code=code, code_verifier=WORD)
    caller = verifier.verify(found["access_token"])
    assert (caller.subject, caller.roles) == ("ada", {"user"})
    assert verifier.verify_id(found["id_token"], dev.WEB, "n") == "ada"
    assert grant(browser, code=code, code_verifier=WORD) == {"error": "invalid_grant"}
    assert grant(browser, code=code_of(browser), code_verifier="x" * 43) == {"error": "invalid_grant"}
    assert grant(browser, code=code_of(browser), code_verifier="") == {"error": "invalid_grant"}


@pytest.mark.parametrize("changes", [{"redirect_uri": "https://evil.example/"}, {"client_id": dev.CLI}])
def test_browser_is_sent_to_the_page_only(browser, changes):
    assert browser.get("/authorize", params={**ASKED, **changes}).status_code == 400


def test_terminal_waits_for_the_code_and_renews_once_each(browser, verifier):
    asked = browser.post("/device_authorization", data={"client_id": dev.CLI}).json()
    form = {"client_id": dev.CLI, "grant_type": dev.DEVICE_GRANT, "device_code": asked["device_code"]}
    assert grant(browser, **form) == {"error": "authorization_pending"}
    assert browser.post("/device", data={"user_code": "none", "login": "ada"}).status_code == 400
    assert "Success" in browser.post("/device", data={"user_code": asked["user_code"], "login": "admin1"}).text
    found = grant(browser, **form)
    assert verifier.verify(found["access_token"]).roles == {"user", "admin"}
    renewal = {"client_id": dev.CLI, "grant_type": "refresh_token", "refresh_token": found["refresh_token"]}
    renewed = grant(browser, **renewal)
    assert verifier.verify(renewed["access_token"]).subject == "admin1"
    assert grant(browser, **renewal) == {"error": "invalid_grant"}
    browser.post("/revoke", data={"token": renewed["refresh_token"]})
    assert grant(browser, **{**renewal, "refresh_token": renewed["refresh_token"]}) == {"error": "invalid_grant"}


def test_settings_that_are_written_can_be_read(tmp_path):
    site = Site(tmp_path / "dev", 8000)
    site._write()
    first = (tmp_path / "dev" / "keys" / "flask_key").read_text()
    site._write()
    assert load(site.config).provider.issuer == ISSUER
    assert (tmp_path / "dev" / "keys" / "flask_key").read_text() == first
    assert len(list((tmp_path / "dev" / "keys").glob("*.pem"))) == 1


def test_port_in_use_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: name)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        port = one.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} cannot be used .* give another --port"):
            Site(tmp_path / "dev", port)._check()
    assert not (tmp_path / "dev").exists()


def test_gateway_of_the_big_command_gets_all_words(monkeypatch):
    found = []
    monkeypatch.setattr("os.execv", lambda program, words: found.append(words[1:]))
    for words in (["serve", "--dev"], ["--config", "x.yml", "keys", "rotate"], ["--help"]):
        assert main(["gateway", *words]) == 0
        assert found.pop() == ["-m", "bhive_mltf.gateway", *words]


def test_gateway_that_is_not_installed_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr("bhive_mltf.cli.find_spec", lambda name: None)
    assert main(["gateway", "serve"]) == 1
    assert "pip install 'bhive_mltf[gateway]'" in capsys.readouterr().err


@pytest.mark.gateway
@pytest.mark.slurm
def test_one_command_starts_all_and_ends_all():
    needs.program("bwrap", "apt-get install bubblewrap")
    if lacking := packages.missing(False):
        needs.missing(f"needs the Debian packages {' '.join(lacking)}; 'make slurm-up' installs them")
    with tempfile.TemporaryDirectory(prefix="mltf-dev-", dir="/tmp") as name:
        folder, port = Path(name), free_port(3)
        folder.chmod(0o755)
        program = "import sys; from bhive_mltf.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", program, "gateway", "serve", "--dev", "--port", str(port)]
        variables = {**os.environ, "BHIVE_SLURM_LAB": str(folder / "lab")}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, cwd=folder, env=variables, **pipes)
        try:
            lines = []
            while "Ctrl-C" not in "".join(lines):
                line = process.stdout.readline()
                assert line, process.communicate()
                lines.append(line)
            assert f"bhive-mltf-client login http://127.0.0.1:{port}" in "".join(lines)
            url, tracking = (f"http://127.0.0.1:{one}" for one in (port, port + 1))
            stack = SimpleNamespace(folder=folder, url=url, tracking=tracking)
            ada = Person(stack, "ada").login()
            out, err = ada.run("submit", EXAMPLE, "--profile", "lab", "-P", "epochs=2", "--follow")
            assert "epoch 1: loss" in out
            assert "succeeded" in err
            job = out.split()[1].rstrip(",")
            assert ada.tracked(job)["info"]["status"] == "FINISHED"
            assert httpx.get(stack.url).status_code == 200
        finally:
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
        for one in range(port, port + 3):
            with socket.socket() as free:
                assert free.connect_ex(("127.0.0.1", one)) != 0
        assert not (folder / "lab").exists()
