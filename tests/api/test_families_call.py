"""A tiny random model made to call in each family's form: what the grammar lets it write is read
again as calls that follow the tools' schemas, whole as streamed."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from loire import LLM, SamplingParams
from support.family_texts import FAMILIES, with_family
from support.tiny_models import save_tiny_llama

PARAMETERS = {
    "type": "object",
    "properties": {
        "station": {"enum": ["Tours & <nord>", "Blois"]},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
        "exact": {"type": "boolean"},
    },
    "required": ["station", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "level", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "list-boats"}},
]
CHAT = [{"role": "user", "content": "Call."}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("families"), max_positions=4096)


@pytest.mark.parametrize("family", FAMILIES)
def test_calls_are_as_they_must_be(family: str, model: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required"}
    folder = with_family(model, tmp_path / "model", family)
    with LLM(str(folder), dtype="float32", kv_cache_memory_bytes=8_000_000, num_threads=1) as llm:
        # gpt-oss may think before it calls, and a random model then thinks on and on.
        n, most = (8, 400) if family == "harmony" else (1, 2000)
        params = SamplingParams(seed=3, temperature=1.0, max_tokens=most, n=n)
        [output] = llm.chat(CHAT, params, **options)
        streamed: dict[int, list[Any]] = {choice.index: [] for choice in output.outputs}
        for news in llm.stream(CHAT, params, **options):
            for piece in news.outputs:
                streamed[piece.index] += piece.tool_calls
    answers = [choice for choice in output.outputs if not choice.reasoning]
    assert answers
    for choice in answers:
        assert choice.finish_reason == "tool_calls", choice
        assert choice.text == ""
        calls = [(call.name, call.arguments) for call in choice.tool_calls]
        assert calls == [(call.name, call.arguments) for call in streamed[choice.index]]
        for call in choice.tool_calls:
            assert call.name in ("level", "list-boats")
            if call.name == "level":
                jsonschema.validate(json.loads(call.arguments), PARAMETERS)
