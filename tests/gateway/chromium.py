"""A browser without a window, driven by Playwright."""

import contextlib
import os
from importlib.util import find_spec
from pathlib import Path

from tests.gateway import needs

PLACE = os.environ.get("BHIVE_CHROMIUM", "/usr/bin/chromium")


def check():
    """Skip where the browser or its driver is not installed."""
    if not Path(PLACE).is_file():
        needs.missing(f"needs {PLACE}: apt-get install chromium")
    if find_spec("playwright") is None or find_spec("axe_playwright_python") is None:
        needs.missing("needs the packages playwright and axe-playwright-python")


@contextlib.contextmanager
def launched():
    """A browser; each of its contexts is a person with cookies of their own."""
    from playwright.sync_api import sync_playwright

    check()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=PLACE, args=["--no-sandbox"])
        yield browser
        browser.close()
