"""The page in a real browser: narrow and wide, light and dark, by keyboard, with scripts and without."""

import os

import pytest

from tests.gateway import chromium as browsers

pytestmark = pytest.mark.gateway


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A gateway that answers on this machine, with a person, an operator and hostile names."""
    from tests.gateway import serving
    from tests.gateway.page import HOSTILE, Page

    browsers.check()
    with serving.listening() as (at, url):
        made = Page(tmp_path_factory.mktemp("page"), url)
        made.url = url
        with serving.answering(made.app, at):
            made.done = made.job(state="succeeded")
            made.hostile = made.job(name=HOSTILE, label=HOSTILE, argv=["x" * 300], reason=HOSTILE)
            made.log(made.hostile, (HOSTILE + "y" * 2000 + "\n").encode())
            yield made
    made.close()


@pytest.fixture(scope="module")
def chromium(page):
    with browsers.launched() as browser:
        yield browser


@pytest.fixture
def open_window(page, chromium):
    """Open a window of a signed-in person; what the browser complains of is collected in `complaints`."""
    from bhive_mltf.gateway.store import web_sessions

    windows = []

    def opened(width=360, color="light", scripts=True):
        with page.database.writing() as session:
            secret = web_sessions.begin(session, page.alice, ["user", "admin"], 600)
        size = {"width": width, "height": 740}
        context = chromium.new_context(viewport=size, color_scheme=color, java_script_enabled=scripts)
        context.add_cookies([{"name": "mltf-session", "value": secret, "url": page.url}])
        window = context.new_page()
        window.complaints = []
        window.on("console", lambda message: window.complaints.append(message.text))
        window.on("dialog", lambda dialog: (window.complaints.append("a dialog"), dialog.dismiss()))
        windows.append(context)
        return window

    page.alice = page.owner("alice")
    yield opened
    for context in windows:
        context.close()


@pytest.mark.parametrize(("width", "color"), [(360, "light"), (360, "dark"), (1280, "light")])
def test_every_page_is_accessible_and_fits(page, open_window, width, color):
    from axe_playwright_python.sync_playwright import Axe

    window = open_window(width, color)
    jobs = [f"/jobs/{page.hostile}", f"/jobs/{page.done}", f"/jobs/{page.hostile}/cancel", "/jobs/none"]
    for path in ("/", "/jobs", "/limits", "/admin", *jobs):
        window.goto(page.url + path)
        if folder := os.environ.get("BHIVE_SCREENSHOTS"):
            window.screenshot(path=f"{folder}/{width}-{color}{path.replace('/', '_')}.png", full_page=True)
        found = Axe().run(window)
        assert found.violations_count == 0, f"{path}: {found.generate_report()}"
        wide = window.evaluate("document.scrollingElement.scrollWidth")
        assert wide <= width, f"{path} is {wide} wide"
    # the browser logs the code of the page that is not there, and nothing else
    assert [text for text in window.complaints if "404" not in text] == []


def test_log_grows_by_itself_and_stops_when_paused(page, open_window):
    from playwright.sync_api import expect

    job = page.job()
    page.log(job, b"first\n")
    window = open_window()
    window.goto(f"{page.url}/jobs/{job}")
    log = window.get_by_role("log")
    assert "first" in log.inner_text()
    page.log(job, b"first\nsecond\n")
    expect(log).to_contain_text("second", timeout=20_000)
    window.get_by_role("link", name="Pause").click()
    page.log(job, b"first\nsecond\nthird\n")
    window.wait_for_timeout(3000)
    assert "third" not in log.inner_text()
    assert window.complaints == []


@pytest.mark.parametrize("scripts", [True, False])
def test_job_is_cancelled_by_keyboard_alone(page, open_window, scripts):
    job = page.job()
    window = open_window(scripts=scripts)
    window.goto(f"{page.url}/jobs/{job}")
    for wanted in ("Cancel this job", "Yes, cancel it"):
        for _ in range(20):
            window.keyboard.press("Tab")
            focused = window.locator(":focus")
            if focused.count() and focused.inner_text() == wanted:
                break
        assert focused.inner_text() == wanted
        with window.expect_navigation():
            window.keyboard.press("Enter")
    assert "being cancelled" in window.content()
