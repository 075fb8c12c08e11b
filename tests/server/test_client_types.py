"""Whatever the official clients declare legal stands on one of the lists: honoured, a hint, or
refused by name. Fields that nobody decided about would otherwise be found by users."""

import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from anthropic.types import message_create_params as anthropic_params
from anthropic.types import message_param as anthropic_message
from anthropic.types.beta import message_create_params as anthropic_beta
from openai.types import completion_create_params as completion_params
from openai.types import embedding_create_params as embedding_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params as responses_params
from typing_extensions import is_typeddict

from loire.server.anthropic import blocks, request, tools
from loire.server.openai import chat_protocol, tools_protocol
from loire.server.openai.completions_protocol import CompletionRequest
from loire.server.openai.embeddings import EmbeddingsRequest
from loire.server.openai.protocol import StreamOptions
from loire.server.openai.responses import items as response_items
from loire.server.openai.responses import request as responses
from loire.server.openai.responses import tools as response_tools
from loire.server.web.strict import StrictModel

BODIES: list[tuple[Any, type[StrictModel]]] = [
    (chat_params.CompletionCreateParamsBase, chat_protocol.ChatCompletionRequest),
    (completion_params.CompletionCreateParamsBase, CompletionRequest),
    (embedding_params.EmbeddingCreateParams, EmbeddingsRequest),
    (responses_params.ResponseCreateParamsBase, responses.ResponsesRequest),
    (anthropic_params.MessageCreateParamsBase, request.MessagesRequest),
    (anthropic_beta.MessageCreateParamsBase, request.MessagesRequest),
]


def decided(model: type[StrictModel]) -> set[str]:
    fields = {field.alias or name for name, field in model.model_fields.items()}
    return fields | set(model.UNSUPPORTED) | set(model.HINTS)


@pytest.mark.parametrize(("theirs", "ours"), BODIES)
def test_every_field_of_a_body_is_on_one_list(theirs: Any, ours: type[StrictModel]) -> None:
    assert set(get_type_hints(theirs)) - decided(ours) == set()
    fields = {field.alias or name for name, field in ours.model_fields.items()}
    assert not fields & set(ours.UNSUPPORTED)
    assert not fields & set(ours.HINTS)
    assert not set(ours.UNSUPPORTED) & set(ours.HINTS)


def typed_dicts(hint: Any) -> Iterator[Any]:
    """The typed dictionaries in a union, a list or an optional."""
    if is_typeddict(hint):  # theirs come from typing_extensions, which typing does not know
        yield hint
    for inner in get_args(hint) if get_origin(hint) is not Literal else ():
        yield from typed_dicts(inner)


def kinds(hint: Any) -> set[str]:
    """The literals of "type" of all typed dictionaries in a hint."""
    found: set[str] = set()
    for theirs in typed_dicts(hint):
        of_type = get_type_hints(theirs).get("type")
        found |= {word for word in _literals(of_type) if isinstance(word, str)}
    assert found, "the client's types are not where they were"
    return found


def _literals(hint: Any) -> Iterator[Any]:
    if get_origin(hint) is Literal:
        yield from get_args(hint)
    elif get_origin(hint) in (typing.Union, types.UnionType):
        for inner in get_args(hint):
            yield from _literals(inner)


def field_of(body: Any, name: str) -> Any:
    return get_type_hints(body)[name]


def test_every_kind_of_input_item_is_read_left_out_or_resolved() -> None:
    theirs = kinds(field_of(responses_params.ResponseCreateParamsBase, "input"))
    assert theirs - set(response_items._ITEMS) - response_items._FOREIGN == set()


BLOCKS_REFUSED = {"image", "container_upload"}
"""What this server cannot read: refused by name."""


def test_every_kind_of_content_block_is_read_left_out_or_refused() -> None:
    theirs: set[str] = set()
    for message in typed_dicts(anthropic_message.MessageParam):
        theirs |= kinds(get_type_hints(message)["content"])
    known = set(blocks._BLOCKS) | blocks._FOREIGN | BLOCKS_REFUSED
    assert theirs - known == set()


ROLES = {"developer", "system", "user", "assistant", "tool", "function"}


def test_every_role_is_known() -> None:
    messages = typed_dicts(field_of(chat_params.CompletionCreateParamsBase, "messages"))
    theirs = {role for m in messages for role in _literals(get_type_hints(m)["role"])}
    assert theirs == ROLES


PAIRS: list[tuple[str, Any, type[StrictModel]]] = [
    ("chat stream_options", chat_params.CompletionCreateParamsBase, StreamOptions),
    ("responses stream_options", responses_params.ResponseCreateParamsBase,
     responses.ResponseStreamOptions),
    ("responses reasoning", responses_params.ResponseCreateParamsBase, responses.Reasoning),
    ("responses text", responses_params.ResponseCreateParamsBase, responses.TextOptions),
    ("anthropic output_config", anthropic_beta.MessageCreateParamsBase,
     request.OutputConfig),
    ("anthropic thinking", anthropic_beta.MessageCreateParamsBase, request.Thinking),
    ("anthropic tool_choice", anthropic_beta.MessageCreateParamsBase, tools.ToolChoice),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body", "ours"), PAIRS, ids=[name for name, _, _ in PAIRS])
def test_every_field_of_an_option_is_on_one_list(
    name: str, body: Any, ours: type[StrictModel]
) -> None:
    for theirs in typed_dicts(field_of(body, name.split()[1])):
        assert set(get_type_hints(theirs)) - decided(ours) == set(), theirs


def test_every_field_of_a_tool_is_on_one_list() -> None:
    ours: dict[str, type[StrictModel]] = {
        "function": response_tools.FunctionToolParam,
        "custom": response_tools.CustomToolParam,
        "namespace": response_tools.NamespaceTool,
    }
    for theirs in typed_dicts(field_of(responses_params.ResponseCreateParamsBase, "tools")):
        hints = get_type_hints(theirs)
        [kind, *_] = _literals(hints["type"])
        if kind in ours:
            assert set(hints) - decided(ours[kind]) == set(), theirs
    for theirs in typed_dicts(field_of(anthropic_beta.MessageCreateParamsBase, "tools")):
        hints = get_type_hints(theirs)
        if "input_schema" in hints:
            assert set(hints) - decided(tools.ToolParam) == set(), theirs
    for theirs in typed_dicts(field_of(chat_params.CompletionCreateParamsBase, "tools")):
        for name in set(get_type_hints(theirs)) - {"type"}:
            [definition] = typed_dicts(get_type_hints(theirs)[name])
            model = {
                "function": tools_protocol.FunctionDefinition,
                "custom": tools_protocol.CustomDefinition,
            }[name]
            assert set(get_type_hints(definition)) - decided(model) == set()
