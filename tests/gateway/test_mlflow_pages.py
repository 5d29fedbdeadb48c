"""The pages of a real MLflow server in a browser, signed in by the gateway's page and a real sign-on provider."""

import re
import time
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from bhive_mltf.gateway.identity.mint import Minter
from bhive_mltf.gateway.tracking import Tracking
from tests.gateway import chromium

pytestmark = [pytest.mark.gateway, pytest.mark.slurm]


@pytest.fixture(scope="module")
def browser(stack):
    with chromium.launched() as made:
        yield made


@pytest.fixture
def person(browser):
    """Open a window of a person who has no session anywhere."""
    contexts = []

    def opened():
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 800}))
        window = contexts[-1].new_page()
        window.set_default_timeout(30_000)
        window.refused = []
        window.on("response", lambda answer: answer.status >= 400 and window.refused.append(answer.url))
        return window

    yield opened
    for context in contexts:
        context.close()


def sign_in(window, name):
    """What a person does at the provider."""
    window.get_by_placeholder("Enter any login").fill(name)
    window.get_by_placeholder("and password").fill("any")
    window.get_by_role("button", name="Sign-in").click()
    window.get_by_role("button", name="Continue").click()


def signed_in(stack, person, name):
    window = person()
    window.goto(stack.url)
    window.get_by_role("link", name="Sign in").click()
    sign_in(window, name)
    window.wait_for_url(f"{stack.url}/jobs")
    return window


def name_of(stack, window):
    """The name in MLflow of the person who is signed in."""
    window.goto(f"{stack.url}/limits")
    return re.search(r"u-\w{12}", window.content())[0]


def run_of(stack, name, word):
    """Make a run of a person with this word in its parameter; the ids of experiment and run."""
    with Tracking(stack.tracking, lambda: mint(stack, name, "user")) as tracking:
        experiment = tracking.experiment(f"{name}/{word}")
        run = tracking.run(experiment, word, f"run of {word}", name, {})
        tracking.log_params(run, {"origin": f"value of {word}"})
    return experiment, run


def mint(stack, name, kind, **claims):
    return Minter.load(stack.folder / "keys", stack.url).mint(name, kind, 60, **claims)


def test_person_signed_in_at_the_page_sees_own_experiments(stack, person):
    alice, bob = signed_in(stack, person, "pages-alice"), signed_in(stack, person, "pages-bob")
    experiment, run = run_of(stack, name_of(stack, alice), "of-alice")
    run_of(stack, name_of(stack, bob), "of-bob")
    for window, own, foreign in ((alice, "of-alice", "of-bob"), (bob, "of-bob", "of-alice")):
        window.goto(f"{stack.url}/jobs")
        window.get_by_role("link", name="MLflow").click()
        window.wait_for_url(f"{stack.tracking}/**")
        window.goto(f"{stack.tracking}/#/experiments")
        window.get_by_text(own).first.wait_for()
        assert foreign not in window.content()
    # as the page of a job leads there
    alice.goto(f"{stack.url}/auth/mlflow#/experiments/{experiment}/runs/{run}")
    alice.get_by_text("value of of-alice").first.wait_for()
    # the assistant of MLflow is not open; nothing else that its pages ask for is refused
    refused = [url for url in alice.refused if "/assistant/" not in url]
    assert refused == []


def test_mlflow_opened_first_leads_through_the_sign_in(stack, person):
    window = person()
    window.goto(f"{stack.tracking}/")
    sign_in(window, "pages-carol")
    window.wait_for_url(f"{stack.tracking}/**")
    assert "mltf_code" not in window.url
    first = name_of(stack, window)
    window.goto(f"{stack.tracking}/")
    window.get_by_text(first).wait_for()
    # whoever signs in next in this browser is the one that MLflow sees
    window.goto(f"{stack.url}/jobs")
    window.get_by_role("button", name="Sign out").click()
    window.wait_for_url(f"{stack.url}/")
    window.context.clear_cookies(domain="127.0.0.1", name=re.compile("^_"))
    window.goto(f"{stack.url}/auth/login")
    sign_in(window, "pages-dora")
    window.wait_for_url(f"{stack.url}/jobs")
    second = name_of(stack, window)
    assert second != first
    window.get_by_role("link", name="MLflow").click()
    window.get_by_text(second).wait_for()


def test_guest_is_told_at_the_page_that_a_role_is_needed(stack, person):
    window = person()
    window.goto(f"{stack.url}/auth/login")
    sign_in(window, "guest-pages")
    window.get_by_text("you have none of the roles").wait_for()
    window.goto(f"{stack.url}/jobs")
    assert urlsplit(window.url).path == "/"


@pytest.fixture
def client(stack):
    with httpx.Client(base_url=stack.tracking, timeout=60, headers={"Accept": "text/html"}) as made:
        yield made


def enter(stack, client, name, **changes):
    """The way of a browser with a code of the gateway; the last answer."""
    place = client.get("/").headers["location"]
    assert place.startswith(f"{stack.url}/auth/mlflow?state=")
    state = parse_qs(urlsplit(place).query)["state"][0]
    asked = {"kind": "browser", "state": state, "until": str(int(time.time()) + 60), **changes}
    return client.get("/", params={"mltf_code": mint(stack, name, **asked)})


def test_cookie_of_a_browser_opens_what_a_person_may(stack, client):
    answer = enter(stack, client, "u-browser")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert all(word in answer.headers["set-cookie"] for word in ("HttpOnly", "SameSite=Lax", "Path=/"))
    assert client.get("/").status_code == 200
    own = {"Origin": stack.tracking}
    asked = {"name": "u-browser/made by a page"}
    made = client.post("/ajax-api/2.0/mlflow/experiments/create", json=asked, headers=own)
    assert made.status_code == 200
    for path in ("/api/2.0/mlflow/users/create", "/api/3.0/mlflow/gateway/secrets/create", "/ajax-api/3.0/mlflow/demo"):
        assert client.post(path, json={}, headers=own).status_code in (403, 404), path


QUESTION = "query GetRun($data: MlflowGetRunInput!) { mlflowGetRun(input: $data) { run { info { runUuid } } } }"


def test_question_in_graphql_shows_own_runs_only(stack, client):
    _, run = run_of(stack, "u-asked", "asked-for")
    asked = {"operationName": "GetRun", "query": QUESTION, "variables": {"data": {"runId": run}}}
    for name, found in (("u-asked", {"run": {"info": {"runUuid": run}}}), ("u-other", None)):
        client.cookies.clear()
        enter(stack, client, name)
        answer = client.post("/graphql", json=asked, headers={"Origin": stack.tracking})
        assert answer.json()["data"]["mlflowGetRun"] == found
    bearer = {"Authorization": f"Bearer {mint(stack, 'u-asked', 'job', run=run, experiment='1')}"}
    assert client.post("/graphql", json=asked, headers=bearer).status_code == 403


@pytest.mark.parametrize("headers", [{}, {"Origin": "https://evil.example"}, {"Origin": "null"}])
def test_page_of_another_site_changes_nothing(stack, client, headers):
    assert enter(stack, client, "u-browser").status_code == 303
    for path in ("/ajax-api/2.0/mlflow/experiments/create", "/graphql"):
        assert client.post(path, json={"name": "u-browser/forged"}, headers=headers).status_code == 403


@pytest.mark.parametrize(
    "changes",
    [{"state": ""}, {"state": "x" * 43}, {"kind": "user"}, {"kind": "job"}, {"kind": "gateway"}],
    ids=["no state", "another state", "user", "job", "gateway"],
)
def test_code_that_is_not_of_this_browser_gives_no_session(stack, client, changes):
    answer = enter(stack, client, "u-browser", **changes)
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers
    assert client.get("/ajax-api/2.0/mlflow/experiments/search?max_results=1").status_code == 401


def test_code_and_cookie_are_good_for_nothing_else(stack, client):
    place = client.get("/").headers["location"]
    state = parse_qs(urlsplit(place).query)["state"][0]
    code = mint(stack, "u-browser", "browser", state=state, until=str(int(time.time()) + 60))
    path = "/api/2.0/mlflow/experiments/search?max_results=1"
    assert client.get(path, headers={"Authorization": f"Bearer {code}"}).status_code == 401
    # a session that is over, and one that nobody signed
    assert enter(stack, client, "u-browser", until="1").status_code == 303
    assert client.get(path).status_code == 401
    content = enter(stack, client, "u-browser").headers["set-cookie"].split("=", 1)[1].split(";")[0]
    client.cookies.clear()
    client.cookies.set("mltf-tracking-session", content[:-2] + ("AA" if content[-2:] != "AA" else "BB"))
    assert client.get(path).status_code == 401
