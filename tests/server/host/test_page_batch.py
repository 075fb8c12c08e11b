"""The picture of the live batch in headless Chromium: ten requests at once, and who may look."""

import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from loire.server.access.keys import KeyRing, parse_key
from loire.server.access.options import Access
from loire.server.host.app import create_app
from loire.server.serving.served import ServedModel
from loire.tracing.palette import LIGHT_COLORS
from support.browser import chromium, running
from support.fake_engine import NAME, FakeEngine
from support.server_process import START_S, Server, start, wait_for
from support.tiny_models import save_tiny_llama

pytest.importorskip("playwright", reason="playwright is not installed")

from playwright.sync_api import Browser, Page, expect

NUM_REQUESTS = 10


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A wide page, nowhere yet; its console must stay empty."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    messages: list[str] = []
    page.on("console", lambda message: messages.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: messages.append(str(error)))
    yield page
    context.close()
    assert [m for m in messages if "Failed to load resource" not in m] == []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose requests can be long enough to be watched."""
    model = save_tiny_llama(tmp_path_factory.mktemp("watched"), max_positions=2**15)
    flags = ("--dtype", "float32", "--num-threads", "1", "--served-model-name", "tiny")
    server = start(model, *flags, "--max-num-seqs", "16", "--kv-cache-memory", "200MB")
    try:
        wait_for(lambda: httpx.get(f"{server.url}/health").status_code == 200, START_S)
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def ask(url: str, number: int, stop: threading.Event) -> int:
    """Stream an answer until it is enough; the number of chunks."""
    content = f"Question {number}: what is new? " + "Tell me more. " * 5
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": content}],
        "ignore_eos": True,
        "seed": number,
        "stream": True,
    }
    num_chunks = 0
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=START_S) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            num_chunks += line.startswith("data: {")
            if stop.is_set():
                break
    return num_chunks


def colors_in(page: Page, canvas: str) -> set[str]:
    """The colours of requests that a picture holds, as #rrggbb."""
    seen: list[str] = page.evaluate(
        """(id) => {
            // From a copy: the browser warns of a canvas on a GPU that is read again and again.
            const canvas = document.getElementById(id);
            const { width, height } = canvas;
            const copy = Object.assign(document.createElement("canvas"), { width, height });
            const context = copy.getContext("2d", { willReadFrequently: true });
            context.drawImage(canvas, 0, 0);
            const { data } = context.getImageData(0, 0, width, height);
            const seen = new Set();
            for (let i = 0; i < data.length; i += 4) {
                const [r, g, b] = data.slice(i, i + 3);
                seen.add("#" + ((r << 16) | (g << 8) | b).toString(16).padStart(6, "0"));
            }
            return [...seen];
        }""",
        canvas,
    )
    return set(seen) & set(LIGHT_COLORS)


def test_ten_requests_are_seen_in_one_batch(page: Page, server: Server) -> None:
    page.goto(server.url)
    page.get_by_text("The latest step as a table").click()
    expect(page.locator("#live-engine")).to_contain_text("up to 16 sequences")
    expect(page.locator("#running")).to_have_text("0")
    enough = threading.Event()
    with ThreadPoolExecutor(NUM_REQUESTS) as pool:
        answers = [pool.submit(ask, server.url, number, enough) for number in range(NUM_REQUESTS)]
        try:
            expect(page.locator("#running")).to_have_text(str(NUM_REQUESTS), timeout=1000 * START_S)
            expect(page.locator("#live-rows tr")).to_have_count(NUM_REQUESTS)
            page.get_by_role("button", name="Pause").click()
            rows = page.locator("#live-rows tr").all_inner_texts()
            label = page.locator("#grid").get_attribute("aria-label")
            grid, blocks = colors_in(page, "grid"), colors_in(page, "blocks")
            rate = page.locator("#decode-rate").inner_text()
        finally:
            enough.set()
        assert all(answer.result(START_S) > 0 for answer in answers)
    page.get_by_role("button", name="Go on").click()
    cells = [row.split("\t") for row in rows]
    assert [cell[0] for cell in cells] == [str(slot + 1) for slot in range(NUM_REQUESTS)]
    assert len({cell[1] for cell in cells}) == NUM_REQUESTS
    assert {cell[2] for cell in cells} == {"decode"}
    assert all(int(cell[3]) > 0 for cell in cells)
    assert label is not None
    assert f"{NUM_REQUESTS} sequences run, 0 wait" in label
    assert len(grid) == len(blocks) == NUM_REQUESTS
    assert float(rate.replace(",", "")) > 0
    expect(page.locator("#running")).to_have_text("0")
    expect(page.locator("#blocks-counts")).to_have_text("nothing in use")


def test_a_turn_of_chat_is_seen_in_the_batch(page: Page, server: Server) -> None:
    page.goto(server.url)
    page.wait_for_selector("#status-dot[data-state=ready]")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Max tokens").fill("30")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("textbox", name="Message", exact=True).fill("Hello")
    page.keyboard.press("Enter")
    expect(page.locator(".theirs .stats")).to_contain_text("first after")
    expect(page.locator("#decode-rate")).to_have_text("0")
    wait_for(lambda: len(colors_in(page, "grid")) == 1, START_S)
    grid = page.locator("#grid").bounding_box()
    assert grid is not None
    page.mouse.move(grid["x"] + grid["width"] - 12, grid["y"] + 8)
    title = re.compile(r"^S\d+ in step \d+: decode, its last token$")
    expect(page.locator("#grid")).to_have_attribute("title", title)


def test_the_stream_lasts_as_long_as_somebody_looks(page: Page, server: Server) -> None:
    begun: list[Any] = []
    ended: list[Any] = []
    page.on("request", lambda r: begun.append(r) if "/admin/live" in r.url else None)
    page.on("requestfailed", lambda r: ended.append(r) if "/admin/live" in r.url else None)
    page.goto(server.url)
    expect(page.locator("#live-engine")).to_contain_text("Policy paged")
    page.get_by_role("button", name="Close the live batch").click()
    expect(page.locator("#live")).not_to_be_visible()
    page.wait_for_timeout(200)
    assert (len(begun), len(ended)) == (1, 1)
    page.reload()
    expect(page.locator("#live")).not_to_be_visible()
    assert len(begun) == 1, "the choice is kept"
    page.get_by_role("button", name="Batch", exact=True).click()
    expect(page.locator("#live")).to_be_visible()
    expect(page.locator("#live-engine")).to_contain_text("Policy paged")
    assert len(begun) == 2


def test_a_picture_that_stands_still_can_be_read(page: Page, server: Server) -> None:
    page.goto(server.url)
    expect(page.locator("#live-engine")).to_contain_text("Policy paged")
    page.get_by_role("button", name="Pause").click()
    enough = threading.Event()
    enough.set()
    assert ask(server.url, 1, enough) <= 1
    page.wait_for_timeout(300)
    expect(page.locator("#step-time")).to_have_text("–")
    page.get_by_role("button", name="Go on").click()
    expect(page.locator("#step-time")).not_to_have_text("–")


def test_with_keys_the_picture_asks_for_an_admins(
    page: Page, tiny_llama: Path, browser: Browser
) -> None:
    user, root = "user-key-0123456789", "root-key-0123456789"
    ring = KeyRing(
        [
            parse_key(f"user:{user}", place="test"),
            parse_key(f"root:{root}", place="test", admin=True),
        ]
    )
    app = create_app(ServedModel([NAME], FakeEngine(tiny_llama)), Access(ring=ring))
    with running(app) as url:
        page.add_init_script(f"sessionStorage.setItem('loire.key.api', '{user}')")
        page.goto(url)
        page.wait_for_selector("#status-dot[data-state=ready]")
        expect(page.locator("#live-problem-text")).to_contain_text("needs an admin key")
        page.get_by_role("button", name="Enter an admin key").click()
        dialog = page.locator("#ask-key")
        dialog.get_by_label("Key").fill(root)
        dialog.get_by_role("button", name="Use it").click()
        expect(page.locator("#live-engine")).to_contain_text("Policy paged")
        expect(page.locator("#live-problem")).not_to_be_visible()


def test_on_a_phone_the_picture_covers_the_chat(page: Page, server: Server) -> None:
    page.set_viewport_size({"width": 360, "height": 700})
    page.goto(server.url)
    expect(page.locator("#live")).not_to_be_visible()
    page.get_by_role("button", name="Batch", exact=True).click()
    expect(page.locator("#live-engine")).to_contain_text("Policy paged")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("document.querySelector('main').inert") is True
    page.get_by_role("button", name="Close the live batch").click()
    expect(page.get_by_role("textbox", name="Message", exact=True)).to_be_visible()
    assert page.evaluate("document.querySelector('main').inert") is False


def test_a_watched_server_stops_at_once(page: Page, tiny_llama: Path) -> None:
    grace = ("--grace-period", "600")  # more than this test waits
    server = start(tiny_llama, "--dtype", "float32", "--num-threads", "1", *grace)
    try:
        wait_for(lambda: httpx.get(f"{server.url}/health").status_code == 200, START_S)
        page.goto(server.url)
        expect(page.locator("#live-engine")).to_contain_text("Policy paged")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(START_S) == 0, "".join(server.log)
        expect(page.locator("#live-problem-text")).to_have_text(
            "The server is stopping and takes no new requests."
        )
    finally:
        server.process.kill()
        server.process.wait()
