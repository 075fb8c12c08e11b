"""`loire run --tools`: calls as JSON, and refusals that name the flag."""

import json
from pathlib import Path

import pytest

from loire.cli.main import main
from support.tiny_models import save_tiny_llama

SMALL = ("--dtype", "float32", "--kv-cache-memory", "8MB", "--num-threads", "1", "-q")
COLOUR = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_llama(tmp_path_factory.mktemp("tools"), max_positions=2048))


@pytest.fixture
def tools(tmp_path: Path) -> str:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([{"function": {"name": "paint", "parameters": COLOUR}}]))
    return str(path)


def test_a_call_is_told(model: str, tools: str, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["run", "hello", "-m", model, *SMALL, "--tools", tools, "--tool-choice", "paint"]
    assert main([*ask, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    [call] = answer["tool_calls"]
    assert call["name"] == "paint"
    assert json.loads(call["arguments"])["colour"] in ("red", "blue")
    assert answer["finish_reason"] == "tool_calls"
    assert main(ask) == 0
    assert json.loads(capsys.readouterr().out)["arguments"] == call["arguments"]


def test_refusals(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["run", "hello", "-m", model, *SMALL, "--tools"]
    assert main([*ask, str(tmp_path / "none.json")]) == 1
    assert "none.json cannot be read" in capsys.readouterr().err
    path = tmp_path / "wrong.json"
    path.write_text('[{"function": {}}]')
    assert main([*ask, str(path)]) == 1
    assert "tools[0]" in capsys.readouterr().err
    assert main([*ask, str(path), "--raw"]) == 1
    assert "--tools needs a chat template and no --raw" in capsys.readouterr().err
