"""The page's files and their headers; what it does in a browser is in test_page_browser.py."""

import re
from pathlib import Path

import pytest

from loire.server.host.page import CONTENT_SECURITY_POLICY, MEDIA_TYPES, page_files
from loire.tracing.palette import DARK_COLORS, LIGHT_COLORS
from support.fake_engine import call

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


def _luminance(color: str) -> float:
    """Of #rrggbb, from 0 to 1 (WCAG 2.2, relative luminance)."""
    parts = [int(color[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(first: str, second: str) -> float:
    lighter, darker = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


TEXT_ON = {
    "ink": ["paper", "raised", "sunken", "accent-wash"],
    "label": [f"c{index}" for index in range(12)],
    "muted": ["paper", "raised", "sunken", "accent-wash"],
    "accent": ["paper", "raised", "sunken"],
    "alert": ["alert-wash"],
    "on-accent": ["accent", "accent-strong"],
}


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_has_enough_contrast(dark: bool) -> None:
    """WCAG 2.2 AA: 4.5 for text, 3 for the edges of controls."""
    colors: dict[str, str] = {}
    for name in ("base.css", "live.css"):
        light, dark_part = (
            page_files()[name].content.decode().split("@media (prefers-color-scheme: dark)", 1)
        )
        for part in (light, dark_part.split("}\n}", 1)[0])[: 1 + dark]:
            colors |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part))
    ratios = {
        (text, ground): _contrast(colors[text], colors[ground])
        for text, grounds in TEXT_ON.items()
        for ground in grounds
    }
    assert {pair: ratio for pair, ratio in ratios.items() if ratio < 4.5} == {}
    edges = {ground: _contrast(colors["edge"], colors[ground]) for ground in ("paper", "raised")}
    assert {ground: ratio for ground, ratio in edges.items() if ratio < 3} == {}
