"""The page in headless Chromium: chat, its controls, its errors, and Markdown that stays text."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loire.server.host.app import create_app
from loire.server.serving.served import ServedModel
from loire.server.web.errors import ApiError
from support.browser import chromium, running
from support.fake_engine import NAME, FakeEngine

pytest.importorskip("playwright", reason="playwright is not installed")

from playwright.sync_api import Browser, Locator, Page, expect

REPLY = "Bonjour! **Nantes** is `on` the Loire."
SHOWN = "Bonjour! Nantes is on the Loire."
SLOW_END = """() => {
  const real = window.fetch;
  window.fetch = async (path, options) => {
    const response = await real(path, options);
    if (!String(path).endsWith("chat/completions")) return response;
    const text = await response.text();
    const end = text.lastIndexOf("data:", text.lastIndexOf('"usage":'));
    const parts = [text.slice(0, end), text.slice(end)];
    const pieces = parts.map((part) => new TextEncoder().encode(part));
    const body = new ReadableStream({
      async start(stream) {
        stream.enqueue(pieces[0]);
        await new Promise((go) => setTimeout(go, 100));
        for (let i = 0; i < 3; ++i) await new Promise(requestAnimationFrame);
        stream.enqueue(pieces[1]);
        stream.close();
      },
    });
    return new Response(body, { status: response.status, headers: response.headers });
  };
}"""
FOCUSED = "document.activeElement.id || document.activeElement.innerText"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def engine(tiny_llama: Path) -> FakeEngine:
    return FakeEngine(tiny_llama, REPLY)


@pytest.fixture
def page(browser: Browser, engine: FakeEngine) -> Iterator[Page]:
    """The page of a served model; every message of its console is a failure."""
    with running(create_app(ServedModel([NAME], engine))) as url:
        context = browser.new_context(viewport={"width": 1400, "height": 900})
        page = context.new_page()
        messages: list[str] = []
        page.on("console", lambda message: messages.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto(url)
        page.wait_for_selector("#status-dot[data-state=ready]")
        yield page
        context.close()
    # What the browser logs by itself for a status that the page handles.
    assert [m for m in messages if "Failed to load resource" not in m] == []


def say(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def answers(page: Page) -> Locator:
    """The answers that have ended."""
    return page.locator(".theirs:not(.pending) .markdown")


def stats(page: Page) -> Locator:
    """The figures under the latest answer."""
    return page.locator(".theirs .stats").last


def sent(engine: FakeEngine, number: int = -1) -> str:
    return engine.frontend.tokenizer.decode(engine.submissions[number].request.prompt_token_ids)


def test_a_turn_of_chat(page: Page, engine: FakeEngine) -> None:
    say(page, "Hello\nyou")
    expect(answers(page)).to_have_text(SHOWN)
    assert page.locator(".markdown strong").inner_text() == "Nantes"
    assert page.locator(".said").inner_text() == "Hello\nyou"
    expect(stats(page)).to_have_text(
        re.compile(r"\d+ tokens.*first after \d+ ms.*16 of \d+ prompt")
    )
    expect(page.locator("#announcer")).to_have_text(REPLY)
    say(page, "And now?")
    expect(answers(page)).to_have_text([SHOWN, SHOWN])
    prompt = sent(engine)
    assert prompt.index("Hello") < prompt.index(REPLY) < prompt.index("And now?")


def test_figures_may_come_some_frames_after_the_last_token(page: Page) -> None:
    page.evaluate(SLOW_END)
    say(page, "Hello")
    expect(stats(page)).to_have_text(re.compile(r"\d+ tokens.*first after \d+ ms"))


def test_regenerate_and_edit_replace_what_follows(page: Page, engine: FakeEngine) -> None:
    for number, question in enumerate(["First", "Second"]):
        say(page, question)
        expect(answers(page)).to_have_count(number + 1)
    engine.reply = "Anew"
    page.locator(".theirs").nth(1).get_by_text("Regenerate").click()
    expect(answers(page)).to_have_text([SHOWN, "Anew"])
    page.locator(".mine").first.get_by_text("Edit").click()
    editor = page.get_by_role("textbox", name="Your message")
    assert editor.input_value() == "First"
    editor.fill("Changed")
    page.locator(".editor button[type=submit]").click()
    expect(page.locator(".said")).to_have_text(["Changed"])
    expect(answers(page)).to_have_text(["Anew"])
    assert "First" not in sent(engine)


def test_an_edit_can_be_left(page: Page, engine: FakeEngine) -> None:
    say(page, "First")
    expect(answers(page)).to_have_count(1)
    page.locator(".mine").get_by_text("Edit").click()
    page.keyboard.press("Escape")
    expect(page.locator(".said")).to_have_text(["First"])
    assert page.evaluate(FOCUSED) == "Edit"
    assert len(engine.submissions) == 1


def test_stop_keeps_what_has_come(page: Page, engine: FakeEngine) -> None:
    engine.pause = asyncio.Event()
    say(page, "Hello")
    expect(page.locator(".markdown")).to_have_text("B")
    page.keyboard.press("Escape")
    expect(answers(page)).to_have_text("B")
    expect(stats(page)).to_contain_text("stopped")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    page.wait_for_timeout(100)
    assert engine.num_requests == 0


def test_settings_are_sent(page: Page, engine: FakeEngine) -> None:
    expect(page.locator("#active-settings")).to_have_text("")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("7")
    page.get_by_role("button", name="Save").click()
    problem = page.locator("#settings-problem")
    expect(problem).to_have_text("Temperature must be a number from 0 to 2, but is 7.")
    values = {"Temperature": "0.5", "Top p": "0.9", "Max tokens": "3", "Seed": "11"}
    for label, value in values.items():
        page.get_by_label(label).fill(value)
    page.get_by_label("JSON").check()
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#active-settings")).to_have_text(
        "system prompt · temperature 0.5 · top p 0.9 · at most 3 tokens · seed 11 · JSON"
    )
    say(page, "Hello")
    expect(stats(page)).to_contain_text("cut at max tokens")
    params = engine.submissions[0].request.params
    assert (params.temperature, params.top_p, params.max_tokens) == (0.5, 0.9, 3)
    assert params.seed == 11
    assert params.structured_outputs is not None
    assert "Be brief." in sent(engine)


def test_conversations_are_kept_renamed_and_deleted(page: Page) -> None:
    titles = page.locator(".choose")
    said = page.locator(".said")
    say(page, "First question")
    expect(answers(page)).to_have_count(1)
    page.get_by_role("button", name="New conversation").click()
    expect(said).to_have_count(0)
    say(page, "Second question")
    expect(answers(page)).to_have_count(1)
    expect(titles).to_have_text(["Second question", "First question"])
    page.get_by_role("button", name="Rename Second question").click()
    page.get_by_role("textbox", name="Title").fill("Renamed")
    page.keyboard.press("Enter")
    expect(titles).to_have_text(["Renamed", "First question"])
    page.reload()
    expect(titles).to_have_text(["Renamed", "First question"])
    expect(said).to_have_text(["Second question"])
    page.get_by_role("button", name="Delete Renamed").click()
    page.locator("#confirm").get_by_role("button", name="Delete").click()
    expect(said).to_have_text(["First question"])
    page.reload()
    expect(titles).to_have_text(["First question"])


def test_tabs_keep_each_others_conversations(page: Page) -> None:
    other = page.context.new_page()
    other.goto(page.url)
    for tab, question in ((page, "In one tab"), (other, "In another")):
        say(tab, question)
        expect(answers(tab)).to_have_count(1)
    other.close()
    page.reload()
    assert sorted(page.locator(".choose").all_inner_texts()) == ["In another", "In one tab"]


def test_errors_are_shown_in_the_servers_words(page: Page, engine: FakeEngine) -> None:
    problems = page.locator(".answer .problem")
    say(page, "long " * 200)
    expect(problems).to_contain_text(str(engine.window))
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    page.get_by_role("button", name="New conversation").click()
    engine.death = ApiError(503, "the engine stopped for the test")
    say(page, "short")
    expect(problems).to_have_text("The engine stopped for the test.")


def test_busy_servers_say_when_to_try_again(page: Page) -> None:
    body = '{"error": {"message": "64 requests wait already"}}'
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(status=429, headers={"Retry-After": "7"}, body=body),
    )
    say(page, "Hello")
    expected = "64 requests wait already. Try again in 7 s."
    expect(page.locator(".answer .problem")).to_have_text(expected)


def test_questions_without_answers_are_asked_together(page: Page, engine: FakeEngine) -> None:
    page.route("**/v1/chat/completions", lambda route: route.abort())
    say(page, "First")
    expect(page.locator(".answer .problem")).to_have_text("The server cannot be reached.")
    page.unroute("**/v1/chat/completions")
    say(page, "Second")
    expect(answers(page).last).to_have_text(SHOWN)
    assert "First\n\nSecond" in sent(engine)


def test_a_key_is_asked_for_and_sent(page: Page) -> None:
    keys: list[str | None] = []

    def refuse_without_key(route: Any) -> None:
        keys.append(route.request.headers.get("authorization"))
        if keys[-1] == "Bearer sk-right":
            route.continue_()
        else:
            route.fulfill(status=401, body='{"error": {"message": "a key is needed"}}')

    page.route("**/v1/chat/completions", refuse_without_key)
    say(page, "Hello")
    dialog = page.locator("#ask-key")
    expect(dialog.locator("#ask-key-text")).to_have_text("This server answers with a key only.")
    dialog.get_by_label("Key").fill("sk-right")
    dialog.get_by_role("button", name="Use it").click()
    expect(answers(page)).to_have_text([SHOWN])
    assert keys == [None, "Bearer sk-right"]
    assert "sk-right" not in page.evaluate("JSON.stringify(Object.values(localStorage))")


def test_the_page_works_by_keyboard(page: Page, engine: FakeEngine) -> None:
    assert page.evaluate(FOCUSED) == "composer-text"
    say(page, "Hello")
    expect(answers(page)).to_have_count(1)
    assert page.evaluate(FOCUSED) == "composer-text"
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(FOCUSED) == "Regenerate"
    engine.reply = "Anew"
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_text("Anew")
    for landmark in ("main", "navigation", "banner"):
        assert page.get_by_role(landmark).count() == 1


def test_the_page_fits_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    sidebar = page.locator("#sidebar")
    expect(sidebar).not_to_be_visible()
    say(page, "word" * 100)
    expect(answers(page)).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.get_by_role("button", name="Conversations").click()
    expect(sidebar).to_be_visible()
    page.keyboard.press("Escape")
    expect(sidebar).not_to_be_visible()
    assert page.evaluate(FOCUSED) == "open-sidebar"


def render(page: Page, text: str, target: str = "div") -> str:
    """The HTML that the page's renderer makes of a text."""
    html: str = page.evaluate(
        """async ([text, tag]) => {
            const { renderMarkdown } = await import("./static/markdown.js");
            const target = document.createElement(tag);
            // As it streams: what comes out must not depend on the pieces.
            for (let end = 1; end <= text.length; end += 1) {
                renderMarkdown(target, text.slice(0, end));
            }
            return target.innerHTML;
        }""",
        [text, target],
    )
    return html


MARKDOWN = {
    "a\nb\n\nc": "<p>a<br>b</p><p>c</p>",
    "## Two ##\ntext": "<h4>Two</h4><p>text</p>",
    "**bold** *em* __b__ _e_ ~~s~~": (
        "<p><strong>bold</strong> <em>em</em> <strong>b</strong> <em>e</em> <s>s</s></p>"
    ),
    "2 * 3 * 4, snake_case_name, 5 ** 2": "<p>2 * 3 * 4, snake_case_name, 5 ** 2</p>",
    r"\*no\*": "<p>*no*</p>",
    "`a *b*` and ``c`d``": "<p><code>a *b*</code> and <code>c`d</code></p>",
    "- a\n- b\n  - c\n- d": "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>",
    "3. a\n4. b": '<ol start="3"><li>a</li><li>b</li></ol>',
    "1. a\n\n   more\n2. b": "<ol><li><p>a</p><p>more</p></li><li><p>b</p></li></ol>",
    "Born in\n1986. Yes": "<p>Born in<br>1986. Yes</p>",
    "> a\n> - b": "<blockquote><p>a</p><ul><li>b</li></ul></blockquote>",
    "a\n\n---\nb": "<p>a</p><hr><p>b</p>",
    "<b>a</b> &amp; ![x](https://x.y/z.png)": (
        '<p>&lt;b&gt;a&lt;/b&gt; &amp;amp; !<a href="https://x.y/z.png" '
        'rel="noopener noreferrer nofollow" target="_blank">x</a></p>'
    ),
    "[a](javascript:alert(1)) [b](data:text/html,x) [c](/d)": (
        "<p>[a](javascript:alert(1)) [b](data:text/html,x) [c](/d)</p>"
    ),
    "see https://a.b/c_d_e.": (
        '<p>see <a href="https://a.b/c_d_e" rel="noopener noreferrer nofollow" '
        'target="_blank">https://a.b/c_d_e</a>.</p>'
    ),
}


def test_markdown_becomes_elements(page: Page) -> None:
    assert {text: render(page, text) for text in MARKDOWN} == MARKDOWN


def test_code_and_tables(page: Page) -> None:
    code = render(page, "```python\nif a < b:\n    # *x*\n```\nafter")
    assert '<pre tabindex="0"><code>if a &lt; b:\n    # *x*</code></pre>' in code
    assert code.endswith("<p>after</p>")
    assert 'aria-label="Copy the python code"' in code
    assert "<code>open\n\nend</code>" in render(page, "~~~\nopen\n\nend")
    table = render(page, "| a | b |\n|---|--:|\n| `x\\|y` | 1 |\n| only |")
    assert '<thead><tr><th>a</th><th class="right">b</th></tr></thead>' in table
    assert '<tr><td><code>x|y</code></td><td class="right">1</td></tr>' in table
    assert '<tr><td>only</td><td class="right"></td></tr>' in table


def test_markdown_is_quick_for_hostile_texts(page: Page) -> None:
    texts = ["*" * 4000, "**a " * 2000, "[" * 4000, "`" * 3999 + "x", "> " * 3000, "a_" * 4000]
    texts += ["- " * 2000, "| " * 3000 + "\n" + "|-" * 3000, "https://" * 800, "~~" * 3000]
    slowest = page.evaluate(
        """async (texts) => {
            const { renderMarkdown } = await import("./static/markdown.js");
            const times = texts.map((text) => {
                const start = performance.now();
                renderMarkdown(document.createElement("div"), text);
                return performance.now() - start;
            });
            return Math.max(...times);
        }""",
        texts,
    )
    assert slowest < 2000
