"""The page: who sees what, what hostile names and logs do, and what works without scripts."""

import base64
import hashlib
import re
import shlex
import time
import tomllib
from pathlib import Path

import jwt
import pytest

from bhive_mltf.gateway.store.tables import Owner, State, Submission, WebSession
from bhive_mltf.gateway.web import pages, text
from bhive_mltf.gateway.web.sign_in import Attempt
from tests.gateway.page import HOSTILE, Page

# of npm's htmx.org 2.0.11, dist/htmx.min.js
HTMX = "sha384-2OatzQy1H+Zd/IIrjr1TcuDGqLXeHhbooAyJY1KdQMKnr4LZ22k31GBLdYKHmVjg"
# of a page: the code for its owner, for another person with a role, and for an operator
ROUTES = {
    ("GET", "/jobs"): (200, 200, 200),
    ("GET", "/jobs/{job_id}"): (200, 404, 404),
    ("GET", "/jobs/{job_id}/state"): (200, 404, 404),
    ("GET", "/jobs/{job_id}/log"): (200, 404, 404),
    ("GET", "/jobs/{job_id}/cancel"): (200, 404, 404),
    ("POST", "/jobs/{job_id}/cancel"): (303, 404, 404),
    ("GET", "/limits"): (200, 200, 200),
    ("GET", "/admin"): (404, 404, 200),
    ("POST", "/auth/logout"): (303, 303, 303),
}
OPEN = {
    ("GET", "/"),
    ("GET", "/static/{name}"),
    ("GET", "/auth/login"),
    ("GET", "/auth/callback"),
    ("GET", "/auth/mlflow"),
}


@pytest.fixture
def page(tmp_path):
    made = Page(tmp_path)
    yield made
    made.close()


@pytest.fixture
def browser(page):
    return page.browser()


@pytest.fixture
def alice(page, browser, monkeypatch):
    assert page.sign_in(browser, monkeypatch).status_code == 303
    return browser


def another(page, monkeypatch, person, **claims):
    made = page.browser()
    assert page.sign_in(made, monkeypatch, person, **claims).status_code == 303
    return made


def mark(browser):
    return re.search(r'name="mark" value="(\w+)"', browser.get("/limits").text)[1]


def ask(browser, route, job, fields=None):
    method, path = route
    return browser.request(method, path.replace("{job_id}", job), data=fields)


def test_every_page_has_a_row():
    from bhive_mltf.gateway.web import entry, routes

    found = {
        (m, path) for room in (entry, routes) for one in room.router.routes for m in one.methods for path in [one.path]
    }
    assert found == {*ROUTES, *OPEN}


@pytest.mark.parametrize("route", sorted(ROUTES))
def test_page_is_for_its_owner(page, browser, monkeypatch, route):
    job = page.job()
    stranger = ask(browser, route, job)
    assert (stranger.status_code, stranger.headers["location"]) == (303, "/")
    people = (("alice", {}), ("bob", {}), ("olga", {"roles": ["admin"]}))
    for (person, claims), expected in zip(people, ROUTES[route], strict=True):
        one = another(page, monkeypatch, person, **claims)
        assert ask(one, route, job, {"mark": mark(one)}).status_code == expected, person


@pytest.mark.parametrize("route", sorted(route for route in ROUTES if route[0] == "POST"))
def test_form_of_another_site_is_refused(page, alice, route):
    job = page.job()
    for fields in ({}, {"mark": "0" * 64}, {"mark": "é"}):
        assert ask(alice, route, job, fields).status_code == 403
    with page.database.reading() as session:
        assert session.get(Submission, job).cancel_at is None
    assert alice.get("/jobs").status_code == 200


def test_sign_in_uses_pkce_and_closed_cookies(page, browser, monkeypatch):
    answer = page.sign_in(browser, monkeypatch)
    assert answer.headers["location"] == "/jobs"
    digest = hashlib.sha256(page.provider.asked_with["code_verifier"].encode()).digest()
    assert page.begun["code_challenge"] == base64.urlsafe_b64encode(digest).decode().rstrip("=")
    assert page.begun["code_challenge_method"] == "S256"
    (cookie,) = [one for one in answer.headers.get_list("set-cookie") if "session" in one]
    assert cookie.startswith("__Host-mltf-session=")
    assert all(word in cookie for word in ("HttpOnly", "Secure", "SameSite=lax", "Path=/"))
    secret = cookie.split("=", 1)[1].split(";")[0]
    assert all(secret.encode() not in p.read_bytes() for p in page.settings.spool.parent.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"nonce": "other"}, 403),
        ({"id_sub": "bob"}, 403),
        ({"client_id": "cli"}, 403),
        ({"aud": "other"}, 403),
        ({"roles": []}, 403),
        ({"roles": ["visitor"]}, 403),
        ({"exp": 1}, 403),
    ],
)
def test_wrong_sign_in_gives_no_session(page, browser, monkeypatch, changes, code):
    answer = page.sign_in(browser, monkeypatch, **changes)
    assert answer.status_code == code
    assert browser.get("/jobs").status_code == 303


def test_state_of_another_attempt_is_refused(page, browser, monkeypatch):
    page.sign_in(browser, monkeypatch)
    fresh = page.browser()
    for state in ("", "x", page.begun["state"]):
        assert fresh.get(f"/auth/callback?code=c&state={state}").status_code == 400
    assert Attempt.read("a.b.c") is None


STATE = "s" * 43


def test_way_to_mlflow_begins_there_and_ends_with_a_code_of_the_visitor(page, alice):
    begun = alice.get("/auth/mlflow")
    assert (begun.status_code, begun.headers["location"]) == (303, "https://mlflow.example/?mltf_code=")
    answer = alice.get("/auth/mlflow", params={"state": STATE})
    place, _, code = answer.headers["location"].partition("?mltf_code=")
    assert (answer.status_code, place) == (303, "https://mlflow.example/")
    (key,) = page.app.state.services.minter.keys.values()
    claims = jwt.decode(code, key.public_key(), algorithms=["ES256"], audience="mlflow")
    with page.database.reading() as session:
        name = session.query(Owner).one().mlflow_name
    assert (claims["sub"], claims["kind"], claims["state"]) == (name, "browser", STATE)
    assert claims["exp"] - claims["iat"] == 60
    assert int(claims["until"]) - claims["iat"] <= page.settings.token_s + 1


def test_stranger_signs_in_on_the_way_to_mlflow(page, browser, monkeypatch):
    answer = page.sign_in(browser, monkeypatch, begin=f"/auth/mlflow?state={STATE}")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/auth/mlflow?state={STATE}")
    assert (
        browser.get(answer.headers["location"]).headers["location"].startswith("https://mlflow.example/?mltf_code=ey")
    )
    for wrong in ("x", STATE + "&", "https://evil.example", STATE[:-1] + "é"):
        assert browser.get("/auth/mlflow", params={"state": wrong}).status_code == 400


def test_blocked_visitor_does_not_get_to_mlflow(page, alice):
    with page.database.writing() as session:
        session.query(Owner).one().blocked_at = time.time()
    assert alice.get("/auth/mlflow", params={"state": STATE}).status_code == 403


def test_each_sign_in_has_a_session_of_its_own(page, alice, monkeypatch):
    before = alice.cookies["__Host-mltf-session"]
    page.sign_in(alice, monkeypatch)
    assert alice.cookies["__Host-mltf-session"] != before
    with page.database.reading() as session:
        assert len(session.query(WebSession).all()) == 1


def test_session_ends_by_sign_out_time_block_and_lost_role(page, monkeypatch):
    one = another(page, monkeypatch, "alice")
    assert one.post("/auth/logout", data={"mark": mark(one)}).status_code == 303
    assert one.get("/jobs").headers["location"] == "/"
    for change, code in (({"expires_at": time.time() - 1}, 303), ({"roles": ["gone"]}, 403)):
        one = another(page, monkeypatch, "alice")
        with page.database.writing() as session:
            for row in session.query(WebSession):
                for name, value in change.items():
                    setattr(row, name, value)
        assert one.get("/jobs").status_code == code
    one = another(page, monkeypatch, "alice")
    with page.database.writing() as session:
        session.query(Owner).one().blocked_at = time.time()
    assert one.get("/jobs").status_code == 403
    # a part that htmx fetches makes the browser itself go and sign in
    assert page.browser().get("/jobs", headers={"HX-Request": "true"}).headers["HX-Redirect"] == "/"


def test_hostile_names_are_text(page, monkeypatch):
    person = another(page, monkeypatch, HOSTILE, roles=["user", "admin"], preferred_username=HOSTILE)
    job = page.job(HOSTILE, name=HOSTILE, label=HOSTILE, argv=[HOSTILE], params={HOSTILE: HOSTILE}, reason=HOSTILE)
    page.log(job, HOSTILE.encode())
    for path in ("/jobs", "/admin", "/limits", f"/jobs/{job}", f"/jobs/{job}/log", f"/jobs/{job}/cancel"):
        answer = person.get(path)
        assert answer.status_code == 200
        assert "&lt;script&gt;" in answer.text, path
        assert "<script>" not in answer.text
        assert "<img" not in answer.text
        policy = answer.headers["content-security-policy"]
        assert policy == pages.POLICY
        assert "unsafe" not in policy
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["strict-transport-security"]


def test_pages_hold_no_inline_script_or_style(page, alice):
    job = page.job()
    for path in ("/", "/jobs", f"/jobs/{job}", "/limits", f"/jobs/{job}/cancel", "/jobs/none"):
        content = alice.get(path).text
        assert not re.search(r"<style|<[^>]*\s(?:style|on\w+)=|javascript:|<script(?![^>]*\ssrc=)", content), path
        assert re.search(r'<script[^>]* integrity="([^"]+)"', content)[1] == HTMX


def test_script_of_others_is_the_published_one(browser):
    assert pages.integrity("htmx.min.js") == HTMX
    answer = browser.get("/static/htmx.min.js")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
    assert "Zero-Clause BSD" in browser.get("/static/htmx.LICENSE.txt").text
    for name in ("../pages.py", "..%2fpages.py", "%2e%2e/pages.py", "none"):
        assert browser.get(f"/static/{name}").status_code == 404


def test_templates_and_files_are_in_the_wheel():
    repository = Path(__file__).parents[2]
    package = repository / "bhive_mltf" / "gateway" / "web"
    data = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packed = {path for pattern in data["bhive_mltf.gateway.web"] for path in package.glob(pattern)}
    there = {path for name in ("static", "templates") for path in (package / name).rglob("*") if path.is_file()}
    assert packed == there


def test_cancel_asks_first_and_records_the_wish(page, alice):
    job = page.job()
    assert f'href="/jobs/{job}/cancel"' in alice.get(f"/jobs/{job}").text
    assert "Yes, cancel it" in alice.get(f"/jobs/{job}/cancel").text
    assert alice.post(f"/jobs/{job}/cancel", data={"mark": mark(alice)}).headers["location"] == f"/jobs/{job}"
    with page.database.reading() as session:
        assert session.get(Submission, job).cancel_at
        assert session.get(Submission, job).state == State.RUNNING.value
    assert "being cancelled" in alice.get(f"/jobs/{job}").text


def test_job_that_is_over_has_no_cancel_and_asks_no_more(page, alice):
    job = page.job(state="succeeded")
    page.log(job, b"done\n")
    content = alice.get(f"/jobs/{job}").text
    assert "done" in content
    assert "hx-get" not in content
    assert "/cancel" not in content


def test_log_goes_on_where_it_stopped(page, alice):
    job = page.job()
    page.log(job, "first \u00e9".encode()[:-1])
    content = alice.get(f"/jobs/{job}").text
    assert "first" in content
    address = re.search(r'hx-get="(/jobs/\w+/log\?offset=\d+)"', content)[1]
    page.log(job, "first \u00e9 second".encode())
    answer = alice.get(address).text
    assert answer.startswith("\u00e9 second<span hx-get=")
    assert "hx-get" not in alice.get(f"/jobs/{job}?follow=false").text.split('role="log"')[1]


@pytest.mark.parametrize(
    ("content", "is_last", "shown", "left"),
    [
        (b"\x1b[31mred\x1b[0m", True, "red", 0),
        (b"a\x1b]0;title\x07b\x1b(Bc", True, "abc", 0),
        (b"10%\r20%\r\nend\x00\x08", True, "10%\n20%\nend", 0),
        (b"a\x1b[3", False, "a", 3),
        (b"a\x1b", False, "a", 1),
        (b"a\x1b]0;tit", False, "a", 7),
        (b"a\xc3", False, "a", 1),
        (b"a\xc3", True, "a\ufffd", 0),
        ("a\u202eb\u2066c".encode(), True, "abc", 0),
    ],
)
def test_log_is_plain_text(content, is_last, shown, left):
    found, used = text.plain(content, is_last=is_last)
    assert (found, len(content) - used) == (shown, left)


def test_unfinished_sequence_does_not_hold_up_a_log():
    content = b"\x1b]" + b"x" * 100_000
    assert text.plain(content, is_last=False)[1] > 0


def test_command_hands_the_same_in_again(page):
    asked = {"entry_point": "train", "nodes": 2, "environment": "env.yaml", "resume": True}
    job = page.job(name="it's", label="-x", params={"a b": "$(c) 'd'"}, **asked)
    with page.database.reading() as session:
        words = shlex.split(text.command(session.get(Submission, job)))
    from bhive_mltf_client import main

    options = main._parser().parse_args(words[1:])
    assert (options.name, options.label, options.param) == ("it's", "-x", ["a b=$(c) 'd'"])
    assert (options.entry_point, options.nodes, options.hours, options.profile) == ("train", 2, 1.0, "gpu")
    assert (options.environment, options.resume) == ("env.yaml", True)


def test_list_goes_through_all_jobs_once(page, alice):
    made = {page.job() for _ in range(30)}
    seen, path = [], "/jobs"
    while path:
        content = alice.get(path).text
        seen += re.findall(r'href="/jobs/(\w+)"', content)
        more = re.search(r'href="(\?after=\w+)"', content)
        path = f"/jobs{more[1]}" if more else ""
    assert (len(seen), set(seen)) == (30, made)


def test_gateway_without_a_client_for_the_page_says_so(page):
    provider = page.settings.provider.model_copy(update={"web_client": ""})
    services = page.app.state.services
    page.app.state.services = type(services)(
        services.settings.model_copy(update={"provider": provider}),
        services.database,
        services.verifier,
        services.minter,
    )
    browser = page.browser()
    assert "/auth/login" not in browser.get("/").text
    assert browser.get("/auth/login").status_code == 404


def test_absent_provider_is_one_sentence(page, browser):
    page.provider.is_away = True
    answer = browser.get("/auth/login")
    assert (answer.status_code, "away" in answer.text) == (503, True)
