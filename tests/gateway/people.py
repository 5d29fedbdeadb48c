"""A person at a browser who signs in at the test provider."""

import html
import re

import httpx


def _form(text):
    found = re.search(r'<form[^>]*action="([^"]+)"[^>]*>(.*?)</form>', text, re.DOTALL)
    if found is None:
        return None
    fields = {}
    for tag in re.findall(r"<input[^>]*>", found[2]):
        name, value = re.search(r'name="([^"]+)"', tag), re.search(r'value="([^"]*)"', tag)
        if name:
            fields[name[1]] = value[1] if value else ""
    return html.unescape(found[1]), fields


def approve(address, name):
    """Open the address of a device sign-in, sign in as `name`, and agree to all that is asked."""
    with httpx.Client(follow_redirects=True, timeout=20) as browser:
        page = browser.get(address)
        for _ in range(6):
            form = _form(page.text)
            if form is None:
                assert "Success" in page.text
                return
            action, fields = form
            if "login" in fields:
                fields.update(login=name, password="any")
            page = browser.post(page.url.join(action), data=fields)
    raise AssertionError("the provider asks for ever")
