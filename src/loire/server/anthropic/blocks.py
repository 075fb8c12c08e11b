"""Messages in Anthropic's API, and the blocks that they consist of."""

import json
from collections.abc import Iterator, Sequence, Set
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, model_validator

from loire.base.request_values import shown
from loire.server.web.ignored import note_ignored
from loire.server.web.strict import FunctionName, Name, StrictModel, Text, refuse
from loire.server.web.unions import Parts, TextOrParts, read_as, told_by

_BLOCK_HINTS = frozenset(("cache_control", "citations"))


class PastBlock(StrictModel):
    """A block of a message; what else an answer that is sent back says of it is not read."""

    HINTS: ClassVar[frozenset[str]] = _BLOCK_HINTS
    DROPS_UNKNOWN: ClassVar[bool] = True


class TextBlock(PastBlock):
    """Text."""

    type: Literal["text"]
    text: Text


class ThinkingBlock(PastBlock):
    """What the assistant thought in an earlier turn. Its signature is not read."""

    type: Literal["thinking"]
    thinking: Text


class ToolUseBlock(PastBlock):
    """A call that the assistant made. input: an object, or what came of one that was cut off."""

    type: Literal["tool_use"]
    id: Name
    name: FunctionName
    input: Any = Field(default_factory=dict)

    def for_template(self) -> dict[str, Any]:
        """The call as a conversation holds it."""
        given = self.input
        text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
        function = {"name": self.name, "arguments": text or "{}"}
        return {"id": self.id, "type": "function", "function": function}


class TextSource(StrictModel):
    """A document that is plain text."""

    DROPS_UNKNOWN: ClassVar[bool] = True

    type: Literal["text", "content"]
    data: Text = ""
    content: TextOrParts[TextBlock] = ""


class DocumentBlock(PastBlock):
    """A document: text, with a title and what it is about."""

    type: Literal["document"]
    source: TextSource
    title: Text = ""
    context: Text = ""

    @property
    def text(self) -> str:
        """The whole of it."""
        body = self.source.data or joined(self.source.content)
        return "\n".join(filter(None, (self.title, self.context, body)))


class SearchResultBlock(PastBlock):
    """What a search of the client found."""

    type: Literal["search_result"]
    source: Text
    title: Text = ""
    content: Parts[TextBlock]

    @property
    def text(self) -> str:
        """The whole of it."""
        return "\n".join(filter(None, (self.title, self.source, joined(self.content))))


class ForeignBlock(BaseModel):
    """What only another provider can read, or what its own tools did: left out, with a note."""

    type: Name


class ToolReference(PastBlock):
    """The name of a tool that a search for tools found: all are offered here anyway."""

    type: Literal["tool_reference"]
    tool_name: Name

    @property
    def text(self) -> str:
        """What the model is told."""
        return self.tool_name


ResultPart = Annotated[
    Annotated[TextBlock, read_as("text")]
    | Annotated[DocumentBlock, read_as("document")]
    | Annotated[SearchResultBlock, read_as("search_result")]
    | Annotated[ToolReference, read_as("tool_reference")],
    told_by(lambda value: _kind_among(value, _RESULT_PARTS)),
]


class ToolResultBlock(PastBlock):
    """What a call returned. is_error: accepted; the content should say what went wrong."""

    type: Literal["tool_result"]
    tool_use_id: Name
    content: TextOrParts[ResultPart] = ""

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_parts(cls, data: Any) -> Any:
        _refuse_others(data, frozenset(_RESULT_PARTS), _RESULT_PARTS)
        return data


_RESULT_PARTS = ("text", "document", "search_result", "tool_reference")
_BLOCKS = ("text", "thinking", "tool_use", "tool_result", "document", "search_result")
_FOREIGN = frozenset(
    (
        "redacted_thinking",
        "server_tool_use",
        "web_search_tool_result",
        "web_fetch_tool_result",
        "code_execution_tool_result",
        "bash_code_execution_tool_result",
        "text_editor_code_execution_tool_result",
        "tool_search_tool_result",
        "mcp_tool_use",
        "mcp_tool_result",
        "compaction",
        "fallback",
        "advisor_tool_result",
    )
)


def _refuse_others(data: Any, known: Set[str], readable: Sequence[str]) -> None:
    """Fail the validation of what has a content with a block of a kind that is not known."""
    content = data.get("content") if isinstance(data, dict) else None
    for number, block in enumerate(content if isinstance(content, list) else ()):
        kind = block.get("type") if isinstance(block, dict) else None
        if isinstance(kind, str) and kind not in known:
            refuse(
                f"a content block of type {shown(kind)} is not supported here: this server reads "
                f"{', '.join(readable)}",
                "content",
                number,
                "type",
                kind="unsupported",
            )


def _kind_among(value: Any, kinds: Sequence[str]) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind in _FOREIGN:
        return "foreign"
    return kind if isinstance(kind, str) and kind in kinds else "text"


Block = Annotated[
    Annotated[TextBlock, read_as("text")]
    | Annotated[ThinkingBlock, read_as("thinking")]
    | Annotated[ToolUseBlock, read_as("tool_use")]
    | Annotated[ToolResultBlock, read_as("tool_result")]
    | Annotated[DocumentBlock, read_as("document")]
    | Annotated[SearchResultBlock, read_as("search_result")]
    | Annotated[ForeignBlock, read_as("foreign")],
    told_by(lambda value: _kind_among(value, _BLOCKS)),
]
Content = TextOrParts[Block]


def joined(content: str | Sequence[TextBlock | ResultPart]) -> str:
    """The whole text."""
    return content if isinstance(content, str) else "".join(block.text for block in content)


class MessageParam(StrictModel):
    """A turn of the conversation."""

    HINTS: ClassVar[frozenset[str]] = frozenset(("cache_control",))
    DROPS_UNKNOWN: ClassVar[bool] = True

    role: Literal["user", "assistant", "system"]
    content: Content

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_blocks(cls, data: Any) -> Any:
        _refuse_others(data, _FOREIGN.union(_BLOCKS), _BLOCKS)
        return data

    @model_validator(mode="after")
    def _check_blocks(self) -> "MessageParam":
        foreign = ToolResultBlock if self.role == "assistant" else (ToolUseBlock, ThinkingBlock)
        for number, block in enumerate(self.content if isinstance(self.content, list) else ()):
            if isinstance(block, foreign):
                refuse(
                    f"a block of type {block.type!r} does not belong to role {self.role!r}",
                    "content",
                    number,
                )
            if isinstance(block, ForeignBlock):
                note_ignored(f"content.{block.type}")
        return self

    @property
    def is_text(self) -> bool:
        """Whether it says something, and calls nothing."""
        if isinstance(self.content, str):
            return bool(self.content)
        calls = any(isinstance(block, ToolUseBlock) for block in self.content)
        return not calls and any(isinstance(b, TextBlock) and b.text for b in self.content)

    def for_template(self) -> Iterator[dict[str, Any]]:
        """The turn as chat templates expect it: results of calls are messages of their own."""
        blocks: Sequence[Any] = (
            [TextBlock(type="text", text=self.content)]
            if isinstance(self.content, str)
            else self.content
        )
        for block in blocks:
            if isinstance(block, ToolResultBlock):
                yield {
                    "role": "tool",
                    "content": joined(block.content),
                    "tool_call_id": block.tool_use_id,
                }
        texts = (TextBlock, DocumentBlock, SearchResultBlock)
        text = "".join(block.text for block in blocks if isinstance(block, texts))
        calls = [block.for_template() for block in blocks if isinstance(block, ToolUseBlock)]
        thoughts = "".join(b.thinking for b in blocks if isinstance(b, ThinkingBlock))
        if text or calls or not any(isinstance(block, ToolResultBlock) for block in blocks):
            message: dict[str, Any] = {"role": self.role, "content": text}
            if calls:
                message["tool_calls"] = calls
            if thoughts:
                message["reasoning_content"] = thoughts
            yield message
