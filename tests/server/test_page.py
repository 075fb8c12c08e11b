"""The page's files and their headers; what it does in a browser is in test_page_browser.py."""

import re
from pathlib import Path

import pytest
from fake_engine import call

from loire.server.page import CONTENT_SECURITY_POLICY, MEDIA_TYPES, page_files
from loire.tracing.palette import DARK_COLORS, LIGHT_COLORS

NAMES = sorted(page_files())


def test_the_page_is_served_while_the_model_loads() -> None:
    response = call(None, "GET", "/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.text.startswith("<!doctype html>")


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_served_with_strict_headers(name: str) -> None:
    response = call(None, "GET", f"/static/{name}")
    assert response.status_code == 200
    assert response.content == page_files()[name].content
    assert response.headers["content-type"] == MEDIA_TYPES[Path(name).suffix]
    assert response.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["cache-control"] == "no-cache"


def test_the_policy_allows_nothing_but_this_server() -> None:
    policy = dict(rule.split(" ", 1) for rule in CONTENT_SECURITY_POLICY.split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "'self' data:",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }


def test_an_unchanged_file_is_not_sent_again() -> None:
    etag = call(None, "GET", "/static/main.js").headers["etag"]
    again = call(None, "GET", "/static/main.js", headers={"If-None-Match": etag})
    assert (again.status_code, again.content) == (304, b"")
    other = call(None, "GET", "/static/main.js", headers={"If-None-Match": '"another"'})
    assert other.status_code == 200


@pytest.mark.parametrize(
    "path", ["/static/none.js", "/static/..%2Fpage.py", "/static/%2e%2e/app.py"]
)
def test_nothing_else_is_served(path: str) -> None:
    response = call(None, "GET", path)
    assert response.status_code == 404
    assert response.json()["error"]["message"]


@pytest.mark.parametrize("name", NAMES)
def test_no_file_names_another_host(name: str) -> None:
    text = page_files()[name].content.decode().replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"(?:https?:)?//[a-z0-9-]+\.[a-z]+", text) == []


def test_the_page_has_no_inline_code() -> None:
    """The policy would refuse it; here the mistake is named."""
    html = page_files()["index.html"].content.decode()
    assert re.findall(r"\s(?:style|on\w+)=", html) == []
    assert re.findall(r"<script(?![^>]*\ssrc=)", html) == []
    scripts = "".join(f.content.decode() for n, f in page_files().items() if n.endswith(".js"))
    assert (
        re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", scripts) == []
    )


def test_all_files_that_are_named_exist() -> None:
    html = page_files()["index.html"].content.decode()
    named = set(re.findall(r'"static/([^"]+)"', html))
    for name, file in page_files().items():
        if name.endswith(".js"):
            named |= set(re.findall(r'(?:from|import) "\./([^"]+)"', file.content.decode()))
    assert named | {"index.html"} == set(page_files())


def test_the_colors_are_those_of_all_pictures() -> None:
    css = page_files()["live.css"].content.decode()
    light, dark = css.split("@media (prefers-color-scheme: dark)")
    for part, colors in ((light, LIGHT_COLORS), (dark, DARK_COLORS)):
        for index, color in enumerate(colors):
            assert f"--c{index}: {color};" in part
