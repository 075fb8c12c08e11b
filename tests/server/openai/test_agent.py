"""The example of an agent: its parts, its loop, and all of it against a real server."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from openai.types.chat import ChatCompletion

from support.server_process import START_S, Server, start, wait_for

SOURCE = Path(__file__).parents[3] / "examples" / "agent.py"


@pytest.fixture(scope="module")
def agent() -> Any:
    spec = importlib.util.spec_from_file_location("agent_example", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [
        ("calculate", '{"expression": "12 * 3.5 + 4"}', "12 * 3.5 + 4 = 46"),
        ("calculate", '{"expression": "-1 / 8"}', "-1 / 8 = -0.125"),
        ("calculate", '{"expression": "1 / 0"}', "error: ZeroDivisionError"),
        ("calculate", '{"expression": "__import__(\'os\')"}', "error: ValueError"),
        ("calculate", '{"expression": "2 ** 99"}', "error: ValueError"),
        ("calculate", '{"expression": "1 +"}', "error: SyntaxError"),
        ("calculate", '{"number": 1}', "error: TypeError"),
        ("calculate", "{", "error: JSONDecodeError"),
        ("time_in", '{"city": "Nantes"}', "It is "),
        ("time_in", '{"city": "Atlantis"}', "error: KeyError"),
        ("shout", "{}", "error: KeyError"),
    ],
)
def test_tools(agent: Any, name: str, arguments: str, result: str) -> None:
    assert agent.run_tool(name, arguments).startswith(result)


def test_memory_is_kept_and_bounded(agent: Any, tmp_path: Path) -> None:
    memory = agent.Memory(tmp_path / "memory.json")
    for number in range(agent.MAX_TURNS + 2):
        memory.add(f"question {number}", f"answer {number}")
    messages = agent.Memory(tmp_path / "memory.json").messages()
    assert messages == memory.messages()
    assert messages[0] == {"role": "user", "content": "question 2"}
    assert len(messages) == 2 * agent.MAX_TURNS


def _call(expression: str) -> dict[str, Any]:
    function = {"name": "calculate", "arguments": json.dumps({"expression": expression})}
    calls = [{"id": expression, "type": "function", "function": function}]
    return {"finish_reason": "tool_calls", "message": {"role": "assistant", "tool_calls": calls}}


def _text(content: str | None) -> dict[str, Any]:
    return {"finish_reason": "stop", "message": {"role": "assistant", "content": content}}


class Script:
    """A model that replies as it was told to, and keeps what it was asked."""

    def __init__(self, *choices: dict[str, Any]) -> None:
        self.asked: list[dict[str, Any]] = []
        self._choices = iter(choices)
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self._create))

    def _create(self, **fields: Any) -> ChatCompletion:
        self.asked.append(fields)
        head = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
        choice = {"index": 0, **next(self._choices)}
        return ChatCompletion.model_validate({**head, "choices": [choice]})


def test_the_loop(agent: Any, tmp_path: Path) -> None:
    script = Script(_call("1 / 0"), _call("1 / 2"), _text("One half."), _text("You are welcome."))
    memory = agent.Memory(tmp_path / "memory.json")
    talking = agent.Agent(script, "m", memory, tool_choice="required")
    lines = list(talking.answer("1 / 2?"))
    assert lines[0].startswith('  [calculate {"expression": "1 / 0"} -> error: ZeroDivisionError')
    assert lines[1:] == ['  [calculate {"expression": "1 / 2"} -> 1 / 2 = 0.5]', "One half."]
    assert [asked["tool_choice"] for asked in script.asked] == ["required", "auto", "auto"]
    result = {"role": "tool", "tool_call_id": "1 / 2", "content": "1 / 2 = 0.5"}
    assert script.asked[-1]["messages"][-1] == result
    assert list(talking.answer("Thanks.")) == ["You are welcome."]
    roles = [message["role"] for message in script.asked[-1]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]


def test_it_does_not_call_for_ever(agent: Any, tmp_path: Path) -> None:
    calls = [_call("1 + 1")] * (agent.MAX_STEPS - 1)
    script = Script(*calls, _text(None))
    talking = agent.Agent(script, "m", agent.Memory(tmp_path / "memory.json"))
    assert list(talking.answer("?"))[-1] == "(no answer within the limit of tokens)"
    assert script.asked[-1]["tool_choice"] == "none"


@pytest.fixture(scope="module")
def server(smollm2: Path) -> Iterator[Server]:
    running = start(smollm2, "--served-model-name", "smollm2", "--kv-cache-memory", "200MB")
    try:
        wait_for(lambda: httpx.get(f"{running.url}/health").status_code == 200, START_S)
        yield running
    finally:
        running.process.terminate()
        running.process.wait(START_S)


def _talk(server: Server, memory: Path, *questions: str) -> list[str]:
    """What the example prints in a conversation."""
    flags = ["--base-url", f"{server.url}/v1", "--memory", memory, "--tool-choice", "required"]
    run = subprocess.run(
        [sys.executable, str(SOURCE), *map(str, flags)],
        input="\n".join([*questions, "", ""]),
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    return run.stdout.removeprefix("> ").splitlines()


def test_for_real(server: Server, tmp_path: Path) -> None:
    memory = tmp_path / "memory.json"
    lines = _talk(server, memory, "What is 17 * 23?", "What time is it in Tokyo?")
    called = [line for line in lines if " -> " in line]
    assert called[0].endswith('[calculate {"expression": "17 * 23"} -> 17 * 23 = 391]')
    assert '[time_in {"city": "Tokyo"} -> It is ' in called[1]
    assert "391" in lines[1]
    # Another process goes on with the conversation: what the question is about was said before.
    [called_then, *_] = _talk(server, memory, "And in New York?")
    assert '[time_in {"city": "New York"} -> It is ' in called_then
    assert len(json.loads(memory.read_text())) == 3
