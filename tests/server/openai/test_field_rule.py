"""The one rule for fields: what changes the answer is honoured or refused, hints are taken and
named in the answer's head, neutral values ask for nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from loire.server.openai.custom_tools import input_text
from support.fake_engine import NAME, FakeEngine, app_over, call
from support.fake_engine import ask as request

USER = {"role": "user", "content": "hi"}
BASES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [USER]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": [USER], "max_tokens": 9},
    "/v1/messages/count_tokens": {"messages": [USER]},
    "/v1/embeddings": {"input": "hi"},
}
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> FakeEngine:
    return FakeEngine(tiny_llama, window=2048)


def ask(engine: FakeEngine, path: str, **fields: Any) -> Any:
    return call(engine, "POST", path, json={"model": NAME, **BASES[path], **fields})


@pytest.mark.parametrize("value", [None, [], {}, False, ""])
@pytest.mark.parametrize("path", sorted(set(BASES) - {"/v1/embeddings"}))
def test_a_neutral_value_of_any_field_is_its_absence(
    engine: FakeEngine, path: str, value: Any
) -> None:
    response = ask(engine, path, functions=value, container=value, unheard_of=value)
    assert response.status_code == 200, response.text
    assert "x-loire-ignored" not in response.headers


HINTS: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"verbosity": "low", "user": "u", "store": True}, "verbosity, user, store"),
    (CHAT, {"prediction": {"type": "content", "content": "x"}}, "prediction"),
    (CHAT, {"metadata": {"a": "b"}, "service_tier": "flex"}, "metadata, service_tier"),
    (CHAT, {"prompt_cache_key": "k", "prompt_cache_retention": "24h"},
     "prompt_cache_key, prompt_cache_retention"),
    (CHAT, {"stream": True, "stream_options": {"include_obfuscation": True}},
     "include_obfuscation"),
    (CHAT, {"reasoning_effort": "low"}, "reasoning_effort"),
    (CHAT, {"chat_template_kwargs": {"enable_thinking": False}}, "enable_thinking"),
    (CHAT, {"messages": [{"role": "user", "content": [
        {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]}]},
     "cache_control"),
    (RESPONSES, {"client_metadata": {"x": "y"}, "max_tool_calls": 3},
     "client_metadata, max_tool_calls"),
    (RESPONSES, {"reasoning": {"summary": "auto"}}, "summary"),
    (RESPONSES, {"include": ["reasoning.encrypted_content"], "truncation": "auto"},
     "include, truncation"),
    (RESPONSES, {"text": {"verbosity": "medium"}}, "verbosity"),
    (MESSAGES, {"betas": ["x"], "context_management": {"edits": [{"type": "clear"}]}},
     "betas, context_management"),
    (MESSAGES, {"thinking": {"type": "adaptive"}}, "reasoning_effort"),
    (MESSAGES, {"output_config": {"effort": "high"}}, "reasoning_effort"),
    (MESSAGES, {"system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
     "cache_control"),
    ("/v1/completions", {"user": "u", "store": True}, "user, store"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "fields", "ignored"), HINTS)
def test_hints_are_taken_and_named(
    engine: FakeEngine, path: str, fields: dict[str, Any], ignored: str
) -> None:
    response = ask(engine, path, **fields)
    assert response.status_code == 200, response.text
    assert response.headers["x-loire-ignored"] == ignored


def test_names_of_fields_cannot_write_into_the_head(engine: FakeEngine) -> None:
    odd = {"type": "hosted\r\nx-evil: 1"}
    own = {"type": "function", "function": {"name": "f"}}
    response = ask(engine, CHAT, tools=[own, odd])
    assert response.status_code == 200, response.text
    assert "x-evil" not in response.headers


@pytest.mark.parametrize(
    ("path", "own", "place"),
    [
        (CHAT, {"type": "function", "function": {"name": "f"}}, "tools[0].type"),
        (RESPONSES, {"type": "function", "name": "f"}, "tools[0].type"),
        (MESSAGES, {"name": "f", "input_schema": {"type": "object"}}, "tools[0].type"),
    ],
)
def test_hosted_tools_are_left_out_beside_others_and_refused_alone(
    engine: FakeEngine, path: str, own: dict[str, Any], place: str
) -> None:
    hosted = {"type": "web_search_20250305", "name": "web_search"}
    response = ask(engine, path, tools=[hosted, own])
    assert response.status_code == 200, response.text
    assert response.headers["x-loire-ignored"] == "tools.web_search_20250305"
    refused = ask(engine, path, tools=[hosted])
    assert refused.status_code == 400
    assert "web_search_20250305" in refused.text
    if path != MESSAGES:
        assert refused.json()["error"]["param"] == place


MESSAGES_BACK: list[list[dict[str, Any]]] = [
    [{"role": "assistant", "content": None}],
    [{"role": "assistant", "content": "a", "reasoning": "hm", "refusal": None, "audio": None,
      "annotations": [], "function_call": None, "tool_calls": None}],
    [{"role": "assistant", "content": "a", "provider_specific_fields": {"x": 1}, "id": "m"}],
    [{"role": "assistant", "content": None, "refusal": "no"}],
    [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}],
    [{"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
     {"role": "function", "name": "f", "content": "1"}],
    [{"role": "assistant", "tool_calls": [
        {"index": 0, "id": "c", "type": "function",
         "function": {"name": "f", "arguments": '{"city": "Par'}}]},
     {"role": "tool", "tool_call_id": "c", "content": "cut"}],
    [{"role": "assistant", "tool_calls": [
        {"id": "c", "type": "custom", "custom": {"name": "f", "input": "x"}}]},
     {"role": "tool", "tool_call_id": "c", "content": "cut"}],
]  # fmt: skip


@pytest.mark.parametrize("past", MESSAGES_BACK)
def test_what_was_answered_can_be_sent_back(engine: FakeEngine, past: list[dict[str, Any]]) -> None:
    response = ask(engine, CHAT, messages=[USER, *past, USER])
    assert response.status_code == 200, response.text
    assert "x-loire-ignored" not in response.headers


ITEMS: list[dict[str, Any]] = [
    {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "secret"},
    {"type": "web_search_call", "id": "w", "status": "completed"},
    {"type": "message", "role": "assistant", "phase": None, "id": None, "content": [
        {"type": "output_text", "text": "b", "annotations": [{"type": "x"}], "logprobs": []}]},
    {"type": "custom_tool_call", "call_id": "c", "name": "f", "input": "x", "namespace": None},
    {"type": "custom_tool_call_output", "call_id": "c", "output": "y"},
    {"type": "function_call", "call_id": "d", "name": "f", "arguments": '{"a": ', "caller": None},
    {"type": "function_call_output", "call_id": "d",
     "output": [{"type": "input_text", "text": "ok"}]},
]  # fmt: skip


def test_items_are_taken_back(engine: FakeEngine) -> None:
    response = ask(engine, RESPONSES, input=[USER, *ITEMS, USER])
    assert response.status_code == 200, response.text
    ignored = response.headers["x-loire-ignored"].split(", ")
    assert ignored == ["encrypted_content", "input.web_search_call"]


BLOCKS: list[dict[str, Any]] = [
    {"type": "text", "text": "a", "citations": None},
    {"type": "redacted_thinking", "data": "x"},
    {"type": "thinking", "thinking": "hm", "signature": "s"},
    {"type": "tool_use", "id": "t", "name": "f", "input": {}, "caller": {"type": "direct"}},
    {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
]  # fmt: skip
RESULT = {
    "type": "tool_result",
    "tool_use_id": "t",
    "content": [{"type": "tool_reference", "tool_name": "f"}, {"type": "text", "text": "r"}],
}


def test_blocks_are_taken_back(engine: FakeEngine) -> None:
    said = {"role": "assistant", "content": BLOCKS}
    document = {"type": "document", "source": {"type": "text", "media_type": "text/plain",
                "data": "the report"}}  # fmt: skip
    asks = {"role": "user", "content": [RESULT, document]}
    brief = {"role": "system", "content": "Be brief."}
    response = ask(engine, MESSAGES, messages=[USER, said, asks, brief, USER])
    assert response.status_code == 200, response.text
    ignored = response.headers["x-loire-ignored"].split(", ")
    assert ignored == ["content.redacted_thinking", "content.server_tool_use"]
    assert "the report" in (engine.submissions[-1].prompt or "")


@pytest.mark.parametrize("kind", ["image", "redacted_thinking", "nonsense"])
def test_what_a_result_cannot_hold_is_refused_by_its_name(engine: FakeEngine, kind: str) -> None:
    call_block = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": [{"type": kind}]}
    messages = [USER, {"role": "assistant", "content": [call_block]},
                {"role": "user", "content": [result]}]  # fmt: skip
    response = ask(engine, MESSAGES, messages=messages)
    assert response.status_code == 400
    said = response.json()["error"]["message"]
    assert f"a content block of type '{kind}' is not supported here: this server reads" in said


@pytest.mark.parametrize(
    ("path", "fields", "name"),
    [
        (CHAT, {"response_format": {"type": "json_schema", "json_schema": {
            "name": "x", "strict": True, "schema": {"not": {}}}}}, "response_format"),
        (CHAT, {"structured_outputs": {"json": {"not": {}}}}, "structured_outputs.json"),
        (CHAT, {"guided_json": {"not": {}}}, "guided_json"),
        (RESPONSES, {"text": {"format": {
            "type": "json_schema", "name": "x", "strict": True, "schema": {"not": {}}}}},
         "text.format.schema"),
        (MESSAGES, {"output_config": {"format": {"type": "json_schema", "schema": {"not": {}}}}},
         "output_config.format.schema"),
    ],
)  # fmt: skip
def test_a_refused_schema_is_called_as_the_caller_knows_it(
    engine: FakeEngine, path: str, fields: dict[str, Any], name: str
) -> None:
    response = ask(engine, path, **fields)
    assert response.status_code == 400
    said = response.json()["error"]["message"]
    assert said == f"{name}: 'not' at #: cannot be enforced; leave it out"


def test_other_modalities_are_refused_by_name(engine: FakeEngine) -> None:
    response = ask(engine, CHAT, modalities=["text", "audio"])
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["message"] == "'audio' is not supported: this server writes text only"
    assert error["param"] == "modalities[1]"


def test_too_many_tokens_are_cut_where_the_field_is_compulsory(engine: FakeEngine) -> None:
    assert ask(engine, MESSAGES, max_tokens=128_000).status_code == 200
    assert ask(engine, MESSAGES, max_tokens=engine.window - 1).status_code == 200
    assert ask(engine, CHAT, max_tokens=128_000).status_code == 400


def test_no_tokens_at_all_only_read_the_prompt(engine: FakeEngine) -> None:
    answer = ask(engine, MESSAGES, max_tokens=0).json()
    assert answer["stop_reason"] == "max_tokens"
    assert "".join(block.get("text", "") for block in answer["content"]) == ""


def test_messages_have_the_header_of_their_api(engine: FakeEngine) -> None:
    headers = ask(engine, MESSAGES).headers
    assert headers["request-id"] == headers["x-request-id"]


CUSTOM = {"type": "custom", "custom": {"name": "patch", "description": "Applies a patch."}}
CALL = '<tool_call>\n{"name": "patch", "arguments": {"input": "*** a\\n+b"}}\n</tool_call>'


def test_a_custom_tool_is_called_with_text(tiny_llama: Path) -> None:
    engine = FakeEngine(tiny_llama, CALL, window=2048)
    answer = ask(engine, CHAT, tools=[CUSTOM]).json()["choices"][0]
    [made] = answer["message"]["tool_calls"]
    assert made["type"] == "custom"
    assert made["custom"] == {"name": "patch", "input": "*** a\n+b"}
    streamed = ask(engine, CHAT, tools=[CUSTOM], stream=True).text
    events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    deltas = [d for e in events for c in e["choices"] for d in c["delta"].get("tool_calls", ())]
    assert "".join(delta["custom"].get("input", "") for delta in deltas) == "*** a\n+b"


def test_a_custom_tool_of_the_responses_api(tiny_llama: Path) -> None:
    engine = FakeEngine(tiny_llama, CALL, window=2048)
    tool = {"type": "namespace", "name": "n", "description": "d",
            "tools": [{"type": "custom", "name": "patch"}]}  # fmt: skip
    response = ask(engine, RESPONSES, tools=[tool, {"type": "web_search"}])
    assert response.status_code == 200, response.text
    answer = response.json()
    [item] = [item for item in answer["output"] if item["type"] == "custom_tool_call"]
    assert (item["name"], item["input"]) == ("patch", "*** a\n+b")
    streamed = ask(engine, RESPONSES, tools=[tool], stream=True).text
    assert '"response.custom_tool_call_input.done"' in streamed


@pytest.mark.parametrize(
    ("arguments", "text"),
    [('{"input": "a"}', "a"), ("free text", "free text"), ("[1]", "[1]"), ('{"x": 1}', '{"x": 1}')],
)
def test_the_input_of_a_custom_tool(arguments: str, text: str) -> None:
    assert input_text(arguments) == text


def test_usage_in_every_chunk_if_asked(engine: FakeEngine) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    for path in (CHAT, "/v1/completions"):
        text = ask(engine, path, stream=True, stream_options=options).text
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        assert all(event["usage"]["prompt_tokens"] > 0 for event in events)
        counts = [event["usage"]["completion_tokens"] for event in events]
        assert counts == sorted(counts)


def test_separators_of_unicode_do_not_break_events(tiny_llama: Path) -> None:
    engine = FakeEngine(tiny_llama, "one\u2028two\u2029three\x85four")
    for path in (CHAT, "/v1/completions", RESPONSES, MESSAGES):
        text = ask(engine, path, stream=True).text
        odd = [
            line for line in text.splitlines() if not line.startswith(("data: ", "event: ", ":"))
        ]
        assert not any(odd), (path, odd)


def test_items_of_stored_responses_can_be_referred_to(engine: FakeEngine) -> None:
    app = app_over(engine)
    body = {"model": NAME, "input": "hi"}
    first = request(app, "POST", RESPONSES, json=body).json()
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    for way in (reference, {"id": reference["id"]}):
        second = request(app, "POST", RESPONSES, json={**body, "input": [USER, way, USER]})
        assert second.status_code == 200, second.text
    listed = request(app, "GET", f"{RESPONSES}/{first['id']}/input_items").json()
    assert [item["content"] for item in listed["data"]] == ["hi"]
    assert listed["first_id"] == listed["last_id"] == listed["data"][0]["id"]


def test_a_hint_is_logged_once(engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="loire.server.ignored")
    app = app_over(engine)
    for _ in range(3):
        request(app, "POST", CHAT, json={"model": NAME, "messages": [USER], "verbosity": "low"})
    assert len(caplog.records) == 1
