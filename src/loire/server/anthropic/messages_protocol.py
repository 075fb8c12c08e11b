"""Bodies of Anthropic's /v1/messages. https://docs.anthropic.com/en/api/messages"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from loire.base.sampling import SamplingParams
from loire.base.structured_outputs import StructuredOutputs
from loire.engine.dialogue import Conversation
from loire.server.web.client_tools import TOOL_HINTS, HostedTool, without_hosted
from loire.server.web.errors import UNION_TAG
from loire.server.web.ignored import note_ignored
from loire.server.web.strict import (
    MAX_INT,
    MAX_MESSAGES,
    MAX_NAME,
    MAX_PARTS,
    MAX_STOP_LENGTH,
    MAX_STOPS,
    MAX_TOOLS,
    RECOMMENDED,
    UP_TO_PARTS,
    FunctionName,
    Name,
    StrictModel,
    Text,
    given_sampling,
    refuse,
)
from loire.text.effort import Effort
from loire.text.tools.definitions import Tool, ToolUse

ModelName = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


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
    content: "TextOrBlocks" = ""


class DocumentBlock(PastBlock):
    """A document: text, with a title and what it is about."""

    type: Literal["document"]
    source: TextSource
    title: Text = ""
    context: Text = ""

    @property
    def text(self) -> str:
        """The whole of it."""
        body = self.source.data or _joined(self.source.content)
        return "\n".join(filter(None, (self.title, self.context, body)))


class SearchResultBlock(PastBlock):
    """What a search of the client found."""

    type: Literal["search_result"]
    source: Text
    title: Text = ""
    content: list[TextBlock] = Field(max_length=MAX_PARTS, fail_fast=True)

    @property
    def text(self) -> str:
        """The whole of it."""
        return "\n".join(filter(None, (self.title, self.source, _joined(self.content))))


class ForeignBlock(BaseModel):
    """What only another provider can read, or what its own tools did: left out, with a note."""

    type: Name


def _text_or_blocks(value: Any) -> str:
    return f"{UNION_TAG}blocks" if isinstance(value, list) else f"{UNION_TAG}text"


TextOrBlocks = Annotated[
    Annotated[Text, Tag(f"{UNION_TAG}text")]
    | Annotated[list[TextBlock], UP_TO_PARTS, Tag(f"{UNION_TAG}blocks")],
    Discriminator(_text_or_blocks),
]


class ToolReference(PastBlock):
    """The name of a tool that a search for tools found: all are offered here anyway."""

    type: Literal["tool_reference"]
    tool_name: Name

    @property
    def text(self) -> str:
        """What the model is told."""
        return self.tool_name


ResultPart = Annotated[
    Annotated[TextBlock, Tag(f"{UNION_TAG}text")]
    | Annotated[DocumentBlock, Tag(f"{UNION_TAG}document")]
    | Annotated[SearchResultBlock, Tag(f"{UNION_TAG}search_result")]
    | Annotated[ToolReference, Tag(f"{UNION_TAG}tool_reference")],
    Discriminator(lambda value: _kind_among(value, _RESULT_PARTS)),
]


class ToolResultBlock(PastBlock):
    """What a call returned. is_error: accepted; the content should say what went wrong."""

    type: Literal["tool_result"]
    tool_use_id: Name
    content: Annotated[
        Annotated[Text, Tag(f"{UNION_TAG}text")]
        | Annotated[list[ResultPart], UP_TO_PARTS, Tag(f"{UNION_TAG}blocks")],
        Discriminator(_text_or_blocks),
    ] = ""


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


def _kind_among(value: Any, kinds: Sequence[str]) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind in _FOREIGN:
        return f"{UNION_TAG}foreign"
    return f"{UNION_TAG}{kind}" if kind in kinds else f"{UNION_TAG}text"


Block = Annotated[
    Annotated[TextBlock, Tag(f"{UNION_TAG}text")]
    | Annotated[ThinkingBlock, Tag(f"{UNION_TAG}thinking")]
    | Annotated[ToolUseBlock, Tag(f"{UNION_TAG}tool_use")]
    | Annotated[ToolResultBlock, Tag(f"{UNION_TAG}tool_result")]
    | Annotated[DocumentBlock, Tag(f"{UNION_TAG}document")]
    | Annotated[SearchResultBlock, Tag(f"{UNION_TAG}search_result")]
    | Annotated[ForeignBlock, Tag(f"{UNION_TAG}foreign")],
    Discriminator(lambda value: _kind_among(value, _BLOCKS)),
]
Content = Annotated[
    Annotated[Text, Tag(f"{UNION_TAG}text")]
    | Annotated[list[Block], UP_TO_PARTS, Tag(f"{UNION_TAG}blocks")],
    Discriminator(_text_or_blocks),
]


def _joined(content: str | Sequence[TextBlock | ResultPart]) -> str:
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
        content = data.get("content") if isinstance(data, dict) else None
        for number, block in enumerate(content if isinstance(content, list) else ()):
            kind = block.get("type") if isinstance(block, dict) else None
            if isinstance(kind, str) and kind not in _BLOCKS and kind not in _FOREIGN:
                refuse(
                    f"a content block of type {kind!r} is not supported: this server reads "
                    f"{', '.join(_BLOCKS)}",
                    "content",
                    number,
                    "type",
                    kind="unsupported",
                )
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
                    "content": _joined(block.content),
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


class ToolParam(StrictModel):
    """A tool that the model may call. input_schema: JSON schema of its arguments."""

    HINTS: ClassVar[frozenset[str]] = TOOL_HINTS

    type: Literal["custom"] = "custom"
    name: FunctionName
    description: Text = ""
    input_schema: dict[str, Any]
    strict: bool = False

    @model_validator(mode="after")
    def _check_schema(self) -> "ToolParam":
        if self.input_schema.get("type") != "object":
            refuse(
                f"the input_schema of tool {self.name!r} must be of type 'object'", "input_schema"
            )
        return self

    def as_tool(self) -> Tool:
        """The tool."""
        return Tool(
            name=self.name,
            description=self.description,
            parameters=self.input_schema,
            strict=self.strict,
        )


AnyTool = Annotated[
    Annotated[ToolParam, Tag(f"{UNION_TAG}custom")]
    | Annotated[HostedTool, Tag(f"{UNION_TAG}hosted")],
    Discriminator(
        lambda value: (
            f"{UNION_TAG}custom"
            if not isinstance(value, dict) or value.get("type") in (None, "custom")
            else f"{UNION_TAG}hosted"
        )
    ),
]


class ToolChoice(StrictModel):
    """Whether tools shall be called: auto, any (at least one), tool (this one), none."""

    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = None
    disable_parallel_tool_use: bool = False

    @model_validator(mode="after")
    def _check_name(self) -> "ToolChoice":
        if (self.type == "tool") != (self.name is not None):
            refuse(f"'name' belongs to type 'tool', but the type is {self.type!r}", "name")
        return self


class Thinking(StrictModel):
    """Whether to think first. How long, and whether to show it, is the model's own."""

    HINTS: ClassVar[frozenset[str]] = frozenset(("block_binding", "budget_tokens", "display"))

    type: Literal["enabled", "adaptive", "between_tools", "disabled"]


class JsonFormat(StrictModel):
    """The form of the answer: JSON that a schema accepts."""

    type: Literal["json_schema"]
    # "schema" is a method of pydantic's models.
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(StrictModel):
    """How to answer."""

    HINTS: ClassVar[frozenset[str]] = frozenset(("task_budget",))

    effort: Effort | None = None
    format: JsonFormat | None = None


class PromptFields(StrictModel):
    """What becomes the prompt."""

    UNSUPPORTED: ClassVar[Mapping[str, str]] = {
        "container": "this server runs no code; leave it out",
        "mcp_servers": "this server calls no others; leave it out",
        "fallbacks": "this server has one model; leave it out",
    }
    HINTS: ClassVar[frozenset[str]] = frozenset(
        (
            "betas",
            "billing_policy",
            "cache_control",
            "compaction",
            "context_management",
            "diagnostics",
            "fallback_credit_token",
            "inference_geo",
            "metadata",
            "service_tier",
            "speed",
            "thread",
            "user_profile_id",
            "workspace_id",
        )
    )

    model: ModelName
    messages: list[MessageParam] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    system: TextOrBlocks = ""
    tools: list[AnyTool] = Field(default_factory=list, max_length=MAX_TOOLS, fail_fast=True)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig = Field(default_factory=OutputConfig)
    output_format: JsonFormat | None = Field(None, description="older: output_config.format")

    @model_validator(mode="after")
    def _check_turns(self) -> "PromptFields":
        if self.messages[-1].role == "assistant":
            refuse(
                "the last message must be the user's: continuing an answer is not supported",
                "messages",
                len(self.messages) - 1,
                "role",
                kind="unsupported",
            )
        names = [tool.name for tool in without_hosted(self.tools)]
        for number, name in enumerate(names):
            if name in names[:number]:
                refuse(f"two tools have the name {name!r}", "tools", number, "name")
        choice = self.tool_choice
        if choice is not None and choice.type in ("any", "tool") and not names:
            refuse(f"'tool_choice' is {choice.type!r}, but there are no 'tools'", "tool_choice")
        if choice is not None and choice.name is not None and choice.name not in names:
            offered = ", ".join(map(repr, names))
            refuse(
                f"'tool_choice' names {choice.name!r}, but the tools offered are {offered}",
                "tool_choice",
                "name",
            )
        return self

    def conversation(self) -> Conversation:
        """What the model shall answer."""
        system = _joined(self.system)
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        messages += (part for message in self.messages for part in message.for_template())
        return Conversation(messages=messages, tools=self._tool_use(), effort=self._effort())

    def _effort(self) -> Effort | None:
        if self.thinking is not None and self.thinking.type == "disabled":
            return "none"
        asked = self.output_config.effort
        return asked or (None if self.thinking is None else "high")

    def _tool_use(self) -> ToolUse | None:
        choice = self.tool_choice or ToolChoice(type="auto")
        own = without_hosted(self.tools)
        if not own or choice.type == "none":
            return None
        single = choice.disable_parallel_tool_use or choice.type == "tool"
        return ToolUse(
            tools=[tool.as_tool() for tool in own],
            mode="auto" if choice.type == "auto" else "required",
            callable_names=None if choice.name is None else frozenset({choice.name}),
            max_calls=1 if single else None,
        )


class CountRequest(PromptFields):
    """A request to count the tokens of a prompt."""


class MessagesRequest(PromptFields):
    """A request for the next message of a conversation."""

    max_tokens: int = Field(
        ge=0, le=MAX_INT, description="cut to what the window leaves; 0 only reads the prompt"
    )
    stop_sequences: list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]] = Field(
        default_factory=list, max_length=MAX_STOPS, fail_fast=True
    )
    stream: bool = False
    temperature: float | None = Field(None, ge=0, le=1, description=RECOMMENDED)
    top_p: float | None = Field(None, ge=0, le=1, description="0 keeps the likeliest token alone")
    top_k: int | None = Field(None, ge=0, le=MAX_INT)

    def sampling_params(self) -> SamplingParams:
        """How to choose tokens. Raises RequestError, naming the field."""
        form = self.output_config.format or self.output_format
        return SamplingParams(
            # The engine ends a request with a token; one that nobody asked for is not shown.
            max_tokens=max(self.max_tokens, 1),
            stop=self.stop_sequences,
            **given_sampling(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k),
            structured_outputs=None if form is None else StructuredOutputs(json=form.schema_),
        )


class MessagesUsage(BaseModel):
    """Tokens. input_tokens: those of the prompt that were not cached."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0


class AnswerBlock(BaseModel):
    """A part of an answer: text, thinking or tool_use, with the fields of its type."""

    type: Literal["text", "thinking", "tool_use"]
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None


class Message(BaseModel):
    """The model's answer."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[AnswerBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None
    usage: MessagesUsage


class TokenCount(BaseModel):
    """Tokens of a prompt."""

    input_tokens: int
