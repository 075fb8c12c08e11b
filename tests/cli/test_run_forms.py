"""`loire run` with answers in a form."""

import json
from pathlib import Path

import pytest

from loire.cli.main import main

SMALL = ["--dtype", "float32", "--kv-cache-memory", "8MB", "-q", "--raw"]
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
)


def _answer(model: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert main(["run", "hello", "-m", str(model), *SMALL, *flags]) == 0
    return capsys.readouterr().out


def test_json_schema_as_text_and_as_a_file(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "schema.json"
    file.write_text(SCHEMA)
    for given in (SCHEMA, str(file)):
        answer = json.loads(_answer(tiny_llama, capsys, "--json-schema", given))
        assert list(answer) == ["ok"]
        assert isinstance(answer["ok"], bool)


def test_regex_and_choice(tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _answer(tiny_llama, capsys, "--regex", "x{3}").strip() == "xxx"
    choices = ["--choice", "oui", "--choice", "non"]
    assert _answer(tiny_llama, capsys, *choices).strip() in {"oui", "non"}
    whole = json.loads(_answer(tiny_llama, capsys, *choices, "--json"))
    assert whole["text"] in {"oui", "non"}
    assert whole["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--json-schema", "/nowhere/x.json"], "/nowhere/x.json cannot be read"),
        (["--json-schema", "{"], "is no JSON"),
        (["--regex", "("], "structured_outputs.regex"),
        (["--choice", ""], "not empty"),
    ],
)
def test_mistakes_are_told(
    tiny_llama: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    assert main(["run", "hello", "-m", str(tiny_llama), *SMALL, *flags]) == 1
    assert words in capsys.readouterr().err


def test_one_form_at_a_time(tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "hello", "-m", str(tiny_llama), "--regex", "a", "--choice", "b"])
    assert "not allowed with" in capsys.readouterr().err
