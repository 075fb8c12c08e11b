"""Items of conversations in /v1/responses, and the messages that they make."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from loire.base.request_values import shown
from loire.server.openai.text_parts import Content, TextPart, joined
from loire.server.openai.tools_protocol import past_call
from loire.server.web.ignored import note_ignored
from loire.server.web.strict import MAX_MESSAGES, FunctionName, Name, StrictModel, Text, refuse
from loire.server.web.unions import AS_LIST, AS_TEXT, TEXT_OR_LIST, Parts, read_as, told_by, up_to


class PastItem(StrictModel):
    """An item of a conversation; what else a provider wrote into it (id, status, phase) is not
    read."""

    DROPS_UNKNOWN: ClassVar[bool] = True


class MessageItem(PastItem):
    """A message."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates expect it."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": joined(self.content)}


class FunctionCallItem(PastItem):
    """A call that the model made. arguments: JSON, or what came of an answer that was cut off."""

    type: Literal["function_call"]
    call_id: Name
    name: FunctionName
    arguments: Text = ""

    def for_template(self) -> dict[str, Any]:
        """The call as a conversation holds it."""
        return past_call(self.call_id, self.name, self.arguments)


class CustomCallItem(PastItem):
    """A call of a custom tool."""

    type: Literal["custom_tool_call"]
    call_id: Name
    name: FunctionName
    input: Text = ""

    def for_template(self) -> dict[str, Any]:
        """The call as a conversation holds it: a custom tool is a function of one text."""
        arguments = json.dumps({"input": self.input}, ensure_ascii=False)
        return past_call(self.call_id, self.name, arguments)


class FunctionOutputItem(PastItem):
    """What a call returned."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: Name
    output: Content

    def for_template(self) -> dict[str, Any]:
        """The result as chat templates expect it."""
        return {"role": "tool", "content": joined(self.output), "tool_call_id": self.call_id}


class ReasoningItem(PastItem):
    """What the model thought before an earlier answer; what only its maker can read is dropped."""

    HINTS: ClassVar[frozenset[str]] = frozenset(("encrypted_content",))

    type: Literal["reasoning"]
    content: Parts[TextPart] = Field(default_factory=list)


class ItemReference(PastItem):
    """An item of a response that was stored."""

    type: Literal["item_reference"] = "item_reference"
    id: Name


class ForeignItem(BaseModel):
    """What another provider's own tools did, or settings of its agents: left out, with a note."""

    type: Name


_ITEMS = (
    "message",
    "function_call",
    "custom_tool_call",
    "function_call_output",
    "custom_tool_call_output",
    "reasoning",
    "item_reference",
)
_FOREIGN = frozenset(
    (
        "additional_tools",
        "apply_patch_call",
        "apply_patch_call_output",
        "code_interpreter_call",
        "compaction",
        "compaction_trigger",
        "computer_call",
        "computer_call_output",
        "configuration_update",
        "file_search_call",
        "image_generation_call",
        "local_shell_call",
        "local_shell_call_output",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_call",
        "mcp_list_tools",
        "program",
        "program_output",
        "shell_call",
        "shell_call_output",
        "tool_search_call",
        "tool_search_output",
        "web_search_call",
    )
)


def _item_kind(value: Any) -> str:
    kind = value.get("type") or _implied_kind(value) if isinstance(value, dict) else None
    if isinstance(kind, str) and kind in _FOREIGN:
        return "foreign"
    return kind if isinstance(kind, str) and kind in _ITEMS else "message"


def _implied_kind(item: Mapping[str, Any]) -> str:
    """Of an item without a type: a reference is known by its having nothing but an id."""
    return "item_reference" if "id" in item and "role" not in item else "message"


Item = Annotated[
    Annotated[MessageItem, read_as("message")]
    | Annotated[FunctionCallItem, read_as("function_call")]
    | Annotated[CustomCallItem, read_as("custom_tool_call")]
    | Annotated[FunctionOutputItem, read_as("function_call_output")]
    | Annotated[FunctionOutputItem, read_as("custom_tool_call_output")]
    | Annotated[ReasoningItem, read_as("reasoning")]
    | Annotated[ItemReference, read_as("item_reference")]
    | Annotated[ForeignItem, read_as("foreign")],
    told_by(_item_kind),
]
Input = Annotated[
    Annotated[Text, AS_TEXT] | Annotated[list[Item], up_to(MAX_MESSAGES, least=1), AS_LIST],
    TEXT_OR_LIST,
]


def refuse_other_items(data: Any) -> None:
    """Fail the validation of a body with an item of a kind that nobody knows."""
    items = data.get("input") if isinstance(data, dict) else None
    for number, item in enumerate(items if isinstance(items, list) else ()):
        kind = item.get("type") or "message" if isinstance(item, dict) else "message"
        if kind not in _ITEMS and (not isinstance(kind, str) or kind not in _FOREIGN):
            refuse(
                f"an input item of type {shown(kind)} is not supported: {', '.join(_ITEMS)} are",
                "input",
                number,
                "type",
                kind="unsupported",
            )


def as_messages(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Items as messages: thoughts and calls join the assistant's message that they belong to.

    References are resolved before.
    """
    messages: list[dict[str, Any]] = []
    thoughts = ""
    for item in items:
        match item:
            case ReasoningItem():
                thoughts += "".join(part.text for part in item.content)
                continue
            case ForeignItem():
                note_ignored(f"input.{item.type}")
                continue
            case FunctionCallItem() | CustomCallItem():
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": ""})
                messages[-1].setdefault("tool_calls", []).append(item.for_template())
            case ItemReference():
                raise AssertionError("references are resolved before")
            case _:
                messages.append(item.for_template())
        if thoughts and messages[-1]["role"] == "assistant":
            messages[-1]["reasoning_content"] = thoughts
        thoughts = ""
    return messages
