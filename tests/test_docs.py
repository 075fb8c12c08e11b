"""What README and docs/ say to type: commands are understood, Python and curl run as they stand;
programs of the repository are there and know their flags.

Only names are put in: the tiny model for smollm2, the test's server for the default address.
"""

import ast
import json
import re
import shlex
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import loire
from loire.cli.main import VERBS, _parser
from loire.server.host.app import create_app
from loire.server.serving.served import ServedModel
from support.fake_engine import NAME, FakeEngine, serving

ROOT = Path(loire.__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = ("langchain_openai", "litellm")
"""Packages that tests/clients/ installs for tests of their own."""
_FENCED = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:(?<=\n\n)|\A)((?:    .*\n|\n(?=    ))+)")
DEFAULT_URL = "http://127.0.0.1:8000"


def blocks() -> Iterator[tuple[str, str]]:
    """All blocks of code, with the page and the line that they begin in."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        found = list(_FENCED.finditer(text))
        # Lines of fenced blocks may be indented as well: they are seen once.
        blanked = _FENCED.sub(lambda match: re.sub(r"[^\n]", "x", match[0]), text)
        found += _INDENTED.finditer(blanked)
        for match in found:
            yield f"{page.name}:{text.count(chr(10), 0, match.start(1)) + 1}", match[1]


def is_python(block: str) -> bool:
    try:
        tree = ast.parse(textwrap.dedent(block))
    except SyntaxError:
        return False
    return any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.walk(tree))


def is_more_python(block: str) -> bool:
    """Whether it goes on with the model that the Python before it made."""
    try:
        return bool(re.search(r"\bllm\.", block)) and bool(ast.parse(textwrap.dedent(block)))
    except SyntaxError:
        return False


def python_blocks() -> Iterator[tuple[str, str]]:
    """What runs by itself; what goes on from there has that before it."""
    page, before = "", ""
    for place, block in BLOCKS:
        if place.partition(":")[0] != page:
            page, before = place.partition(":")[0], ""
        if is_python(block):
            before = block
            yield place, block
        elif before and is_more_python(block):
            yield place, f"{before}\n{block}"


def typed(pattern: str) -> list[tuple[str, str]]:
    """Lines that begin so, those that go on joined."""
    return [
        (place, line.removeprefix(".venv/bin/"))
        for place, block in BLOCKS
        for line in re.sub(r"\\\n\s*", "", block).splitlines()
        if re.match(rf"(\.venv/bin/)?{pattern}", line)
    ]


BLOCKS = [(place, textwrap.dedent(block)) for place, block in blocks()]
PYTHON = list(python_blocks())
RUN = [(place, block) for place, block in PYTHON if not any(map(block.__contains__, ELSEWHERE))]
COMMANDS = typed(r"loire \w")
PROGRAMS = typed(r"(python|pytest) .*\.py")
CURLS = typed("curl ")


def test_there_is_something_to_try() -> None:
    assert len(PYTHON) >= 7
    assert len(COMMANDS) >= 25


@pytest.mark.parametrize(("place", "line"), COMMANDS, ids=[place for place, _ in COMMANDS])
def test_commands_are_understood(place: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    ends = [number for number, word in enumerate(words) if word in ("|", ">", ">>", "&", "&&")]
    _, verb, *rest = words[: min(ends, default=len(words))]
    assert verb in VERBS, place
    _parser(verb)[0].parse_args([verb, *rest])


@pytest.mark.parametrize(("place", "line"), PROGRAMS, ids=[place for place, _ in PROGRAMS])
def test_programs_are_there_and_know_their_flags(place: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    [program] = [word for word in words if word.endswith(".py")]
    source = (ROOT / program).read_text(encoding="utf-8")
    if words[0] == "python":
        for flag in (word.removeprefix("--") for word in words if word.startswith("--")):
            assert re.search(rf'"(--)?{flag}"', source), f"{place}: --{flag}"


@pytest.mark.parametrize(("place", "line"), CURLS, ids=[place for place, _ in CURLS])
def test_curl_asks_a_route_with_json(place: str, line: str) -> None:
    words = shlex.split(line)
    [url] = [word for word in words if "localhost" in word or "127.0.0.1" in word]
    paths = create_app(ServedModel([NAME], None)).openapi()["paths"]
    assert "/" + url.partition("/")[2] in paths, place
    json.loads(words[words.index("-d") + 1])


def put_in(text: str, model: Path, url: str) -> str:
    small = 'kv_cache_memory_bytes=8_000_000, num_threads=1, dtype="float32"'
    text = text.replace('LLM("smollm2")', f"LLM({str(model)!r}, {small})")
    text = text.replace("smollm2", NAME).replace("http://localhost:8000", DEFAULT_URL)
    return text.replace(DEFAULT_URL, url)


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What servers keep goes to a folder of the test's own: another server may have the default."""
    monkeypatch.setenv("LOIRE_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like tiny_llama, with a window for what pages ask."""
    from support.tiny_models import save_tiny_llama

    return save_tiny_llama(tmp_path_factory.mktemp("docs"), max_positions=4096)


def save_french(model: Path) -> None:
    """The adapter that pages speak of, below the working directory."""
    from transformers import AutoModelForCausalLM

    from support.adapter_files import adapter_tensors, save_adapter

    tensors = adapter_tensors(AutoModelForCausalLM.from_pretrained(model), 4)
    save_adapter(Path("adapters/french"), tensors, 4)


@pytest.mark.parametrize(("place", "block"), RUN, ids=[place for place, _ in RUN])
def test_python_runs(
    place: str, block: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "LoRARequest" in block:
        save_french(model)
    reply = '{"name": "Ada", "age": 36}'
    with serving(FakeEngine(model, reply, window=4096)) as url:
        exec(compile(put_in(block, model, url), place, "exec"), {"__name__": "__main__"})


def test_the_three_dialects_of_the_first_screen(model: Path) -> None:
    [script] = [block for _, block in BLOCKS if block.startswith("ask() {")]
    with serving(FakeEngine(model, "Hello there", window=4096)) as url:
        asked = subprocess.run(
            ["bash", "-c", put_in(script, model, url).replace('-d "$2"', '-w "\\n" -d "$2"')],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    answers = [json.loads(line) for line in asked.stdout.splitlines()]
    assert [answer.get("object", answer.get("type")) for answer in answers] == [
        "chat.completion", "response", "message"
    ]  # fmt: skip


def rows_with_tests() -> Iterator[tuple[str, str]]:
    """Of tables whose last column is the test: what stands first in a row, and the last cell."""
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        head, _, *rows = [re.split(r"\s*\|\s*", line.strip("|\n ")) for line in table.splitlines()]
        if head[-1] == "test":
            for row in rows:
                assert len(row) == len(head), row[0]
                yield row[0], row[-1]


def test_every_promise_and_every_attack_has_a_test() -> None:
    rows = list(rows_with_tests())
    assert len(rows) > 40
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for subject, cell in rows:
        named = re.findall(r"`([^`]+)`", cell)
        assert named, f"no test: {subject}"
        for name in named:
            if name.startswith("make "):
                assert name.removeprefix("make ") in targets, subject
            else:
                assert name.startswith("tests/"), f"{name}: {subject}"
                assert (ROOT / name).exists(), f"{name} is not there: {subject}"
