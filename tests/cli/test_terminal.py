"""The command line as somebody at a terminal, or in a pipe, meets it."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loire.api import LLM
from loire.base.errors import RequestError
from loire.base.sampling import SamplingParams
from loire.cli import chat, serve
from loire.cli.columns import aligned
from loire.cli.main import VERBS, main
from loire.cli.options import default_sampling, engine_options
from loire.cli.piped import prompt_with_input

SMALL = ["--kv-cache-memory", "8MB", "--num-threads", "1", "-q"]


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes standard input a pipe that holds some bytes."""
    opened = []

    def fill(data: bytes) -> None:
        read, write = os.pipe()
        os.write(write, data)
        os.close(write)
        # As Python has it in the locale C.
        opened.append(os.fdopen(read, encoding="utf-8", errors="surrogateescape"))
        monkeypatch.setattr(sys, "stdin", opened[-1])

    yield fill
    for file in opened:
        file.close()


def test_what_is_piped_comes_before_the_prompt(pipe: Any) -> None:
    pipe(b"+ added a line\n")
    assert prompt_with_input("Write a commit message") == "+ added a line\n\nWrite a commit message"


@pytest.mark.parametrize("prompt", [None, "-", ""])
def test_what_is_piped_is_the_prompt_where_there_is_no_other(pipe: Any, prompt: str | None) -> None:
    pipe("Où est la Loire ?\n".encode())
    assert prompt_with_input(prompt) == "Où est la Loire ?\n"


@pytest.mark.parametrize(
    ("data", "prompt", "words"),
    [
        (b"", None, "there is no prompt: say"),
        (b" \n", " ", "there is no prompt: say"),
        (b"", "-", "nothing came from it"),
        (b"\xff\xfe", "Hello", "is not text in UTF-8"),
    ],
)
def test_empty_input_says_what_it_wants(
    pipe: Any, data: bytes, prompt: str | None, words: str
) -> None:
    pipe(data)
    with pytest.raises(RequestError, match=words):
        prompt_with_input(prompt)


def test_a_prompt_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert prompt_with_input("Hello") == "Hello"
    monkeypatch.setattr(sys, "stdin", None)
    assert prompt_with_input("Hello") == "Hello"


def test_the_pipe_reaches_the_model(
    pipe: Any, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(b"context" * 10)
    flags = ["-m", str(tiny_llama), *SMALL, "--max-tokens", "2", "--raw", "--json"]
    assert main(["run", "Go on", *flags]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["usage"]["prompt_tokens"] == 70 + 2 + 5


def test_messages_are_in_the_command_lines_words(
    tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["run", "Hello", "-m", str(tiny_llama), "-q"]
    assert main([*model, "--kv-cache-memory", "60kB"]) == 1
    assert "raise --kv-cache-memory or lower --max-model-len to" in capsys.readouterr().err
    assert main([*model, "--kv-cache-memory", "1kB"]) == 1
    error = capsys.readouterr().err
    assert "no room for a single KV block of 16 tokens" in error
    assert "--kv-cache-memory is 0.0 MiB" in error
    assert main([*model, *SMALL, "--top-p", "2"]) == 1
    assert "top_p" not in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.startswith("loire ")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([verb, "--help"])
    assert f"usage: loire {verb}" in capsys.readouterr().out


def test_a_mistake_is_told_without_a_screen_of_options(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, usage, said in (
        (["run", "--nope"], "loire run [OPTION ...] [prompt]", "unrecognized arguments: --nope"),
        (["chat", "-m", "x"], "loire chat [OPTION ...] [model]", "unrecognized arguments: -m"),
        (["serve", "--port", "x"], "loire serve [OPTION ...] [model]", "argument --port"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        first, second = capsys.readouterr().err.splitlines()
        assert first == f"usage: {usage}"
        assert second.startswith(f"loire {arguments[0]}: error: {said}")


def test_show(tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(tiny_llama), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model"]["family"] == "llama"
    assert facts["text"]["ends with"] == ["<|im_end|>"]
    assert facts["text"]["chat template"] == ["default"]
    assert facts["sampling"] == {"recommended by": "nobody: temperature 1, all tokens"}
    assert main(["show", str(tiny_llama)]) == 0
    assert "nobody: temperature 1, all tokens" in capsys.readouterr().out


def test_env_tells_how_a_model_is_sampled_and_who_says_so(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    (model / "generation_config.json").write_text('{"temperature": 0.6, "top_k": 20}')
    assert main(["env", str(model), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts[f"sampling of {model}"] == {
        "temperature": 0.6, "top_k": 20, "recommended by": str(model / "generation_config.json")
    }  # fmt: skip
    assert "loire" not in facts["packages"]
    assert not [name for name in facts["packages"] if set("[]<>=,;") & set(name)]


def test_models_of_the_hubs_cache_are_listed(
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(tiny_llama, tmp_path / "models--org--whole" / "snapshots" / "abc")
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(b"x" * 10)
    (tmp_path / "models--org--half" / "snapshots" / "abc").mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert main(["models", "--json"]) == 0
    models = {model["name"]: model for model in json.loads(capsys.readouterr().out)}
    assert models["org/name"]["bytes"] == 10
    assert models["org/name"]["path"] == str(snapshot)
    assert models["org/name"]["weights_bytes"] is None
    assert "org/half" not in models
    assert main(["plan", str(tiny_llama), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert models["org/whole"]["weights_bytes"] == planned["weights_bytes"]


@pytest.mark.parametrize("home", ["{tmp}/file", "{tmp}/file/inside", "~no-such-user/x"])
@pytest.mark.parametrize("verb", [["models"], ["env"], ["run", "Hello"], ["pull", "smollm2"]])
def test_one_sentence_for_a_home_that_cannot_be_used(
    home: str,
    verb: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOIRE_HOME", home.format(tmp=tmp_path))
    assert main(verb) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "set LOIRE_HOME to a folder of yours" in error


def test_columns_are_as_wide_as_the_longest_name() -> None:
    lines = list(aligned({"a": 1, "much longer": ["x", "y"]}))
    assert lines == ["  a            1", "  much longer  x, y"]


def test_chat_leaves_by_exit_and_explains_ctrl_c(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = iter([KeyboardInterrupt(), "/exit"])

    def read(prompt: str) -> str:
        item = next(typed)
        if isinstance(item, BaseException):
            raise item
        return item

    monkeypatch.setattr("builtins.input", read)
    with LLM(str(tiny_llama), kv_cache_memory_bytes=8_000_000, num_threads=1) as llm:
        chat.ChatLoop(llm, SamplingParams()).run()
    assert "(/exit or Ctrl-D leaves)" in capsys.readouterr().out
    assert list(typed) == []


def test_another_chat_template(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[-1].content }}!")
    flags = ["-m", str(tiny_llama), *SMALL, "--max-tokens", "1", "--json"]
    assert main(["run", "Hello", *flags, "--chat-template", str(template)]) == 0
    assert json.loads(capsys.readouterr().out)["usage"]["prompt_tokens"] == len("Hello!")
    with pytest.raises(SystemExit, match="2"):
        main(["run", "Hello", *flags, "--chat-template", str(tmp_path / "nowhere")])
    assert "nowhere cannot be read" in capsys.readouterr().err


def test_sampling_flags_of_a_server(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    args = parser.parse_args(
        ["--temperature", "0.3", "--top-k", "20", "--generation-config", "none"]
    )
    assert default_sampling(args) == {"temperature": 0.3, "top_k": 20}
    assert engine_options(args) == {"generation_config": "none"}
    with pytest.raises(RequestError, match="temperature must be"):
        default_sampling(parser.parse_args(["--temperature", "-1"]))
