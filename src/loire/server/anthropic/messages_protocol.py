"""Bodies of Anthropic's /v1/messages. https://docs.anthropic.com/en/api/messages"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from loire.base.sampling import SamplingParams
from loire.server.serving.conversation import Conversation
from loire.server.web.errors import UNION_TAG
from loire.server.web.strict import (
    MAX_INT,
    MAX_MESSAGES,
    MAX_NAME,
    MAX_PARTS,
    MAX_STOP_LENGTH,
    MAX_STOPS,
    MAX_TOOLS,
    FunctionName,
    Name,
    StrictModel,
    Text,
    refuse,
)
from loire.text.tools.definitions import Tool, ToolUse

ModelName = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


class CacheControl(StrictModel):
    """Accepted without effect: equal prefixes are found by themselves."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(StrictModel):
    """Text."""

    type: Literal["text"]
    text: Text
    cache_control: CacheControl | None = None


class ThinkingBlock(StrictModel):
    """What the assistant thought in an earlier turn. signature: accepted without effect."""

    type: Literal["thinking"]
    thinking: Text
    signature: Text = ""


class ToolUseBlock(StrictModel):
    """A call that the assistant made."""

    type: Literal["tool_use"]
    id: Name
    name: FunctionName
    input: dict[str, Any]
    cache_control: CacheControl | None = None

    def for_template(self) -> dict[str, Any]:
        """The call as a conversation holds it."""
        function = {"name": self.name, "arguments": json.dumps(self.input, ensure_ascii=False)}
        return {"id": self.id, "type": "function", "function": function}


def _text_or_blocks(value: Any) -> str:
    return f"{UNION_TAG}blocks" if isinstance(value, list) else f"{UNION_TAG}text"


TextOrBlocks = Annotated[
    Annotated[Text, Tag(f"{UNION_TAG}text")]
    | Annotated[list[TextBlock], Field(max_length=MAX_PARTS), Tag(f"{UNION_TAG}blocks")],
    Discriminator(_text_or_blocks),
]


class ToolResultBlock(StrictModel):
    """What a call returned. is_error: accepted; the content should say what went wrong."""

    type: Literal["tool_result"]
    tool_use_id: Name
    content: TextOrBlocks = ""
    is_error: bool = False
    cache_control: CacheControl | None = None


_BLOCKS = ("text", "thinking", "tool_use", "tool_result")


def _block_kind(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    return f"{UNION_TAG}{kind}" if kind in _BLOCKS else f"{UNION_TAG}text"


Block = Annotated[
    Annotated[TextBlock, Tag(f"{UNION_TAG}text")]
    | Annotated[ThinkingBlock, Tag(f"{UNION_TAG}thinking")]
    | Annotated[ToolUseBlock, Tag(f"{UNION_TAG}tool_use")]
    | Annotated[ToolResultBlock, Tag(f"{UNION_TAG}tool_result")],
    Discriminator(_block_kind),
]
Content = Annotated[
    Annotated[Text, Tag(f"{UNION_TAG}text")]
    | Annotated[list[Block], Field(max_length=MAX_PARTS), Tag(f"{UNION_TAG}blocks")],
    Discriminator(_text_or_blocks),
]


def _joined(content: str | Sequence[TextBlock]) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)


class MessageParam(StrictModel):
    """A turn of the conversation."""

    role: Literal["user", "assistant"]
    content: Content

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_blocks(cls, data: Any) -> Any:
        content = data.get("content") if isinstance(data, dict) else None
        for number, block in enumerate(content if isinstance(content, list) else ()):
            kind = block.get("type") if isinstance(block, dict) else None
            if isinstance(kind, str) and kind not in _BLOCKS:
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
        text = "".join(block.text for block in blocks if isinstance(block, TextBlock))
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

    type: Literal["custom"] = "custom"
    name: FunctionName
    description: Text = ""
    input_schema: dict[str, Any]
    strict: bool = False
    cache_control: CacheControl | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_built_in_tools(cls, data: Any) -> Any:
        kind = data.get("type") if isinstance(data, dict) else None
        if isinstance(kind, str) and kind != "custom":
            refuse(
                f"a tool of type {kind!r} is not supported: only those of your own are",
                "type",
                kind="unsupported",
            )
        return data

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


class Metadata(StrictModel):
    """Accepted without effect."""

    user_id: Name | None = None


class Thinking(StrictModel):
    """Only "disabled": how long a model thinks is not limited."""

    type: Literal["disabled"]

    @model_validator(mode="before")
    @classmethod
    def _refuse_budgets(cls, data: Any) -> Any:
        kind = data.get("type") if isinstance(data, dict) else None
        if isinstance(kind, str) and kind != "disabled":
            refuse(
                f"'thinking' of type {kind!r} is not supported: a model that thinks does so by "
                f"itself; leave it out",
                "type",
                kind="unsupported",
            )
        return data


class PromptFields(StrictModel):
    """What becomes the prompt."""

    UNSUPPORTED: ClassVar[Mapping[str, str]] = {
        "container": "this server runs no code; leave it out",
        "mcp_servers": "this server calls no others; leave it out",
        "context_management": "nothing is dropped from the conversation; leave it out",
        "output_config": "leave it out",
        "output_format": "use the OpenAI API's response_format",
        "inference_geo": "leave it out",
    }

    model: ModelName
    messages: list[MessageParam] = Field(min_length=1, max_length=MAX_MESSAGES)
    system: TextOrBlocks = ""
    tools: list[ToolParam] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None

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
        names = [tool.name for tool in self.tools]
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
        return Conversation(messages=messages, tools=self._tool_use())

    def _tool_use(self) -> ToolUse | None:
        choice = self.tool_choice or ToolChoice(type="auto")
        if not self.tools or choice.type == "none":
            return None
        single = choice.disable_parallel_tool_use or choice.type == "tool"
        return ToolUse(
            tools=[tool.as_tool() for tool in self.tools],
            mode="auto" if choice.type == "auto" else "required",
            callable_names=None if choice.name is None else frozenset({choice.name}),
            max_calls=1 if single else None,
        )


class CountRequest(PromptFields):
    """A request to count the tokens of a prompt."""


class MessagesRequest(PromptFields):
    """A request for the next message of a conversation."""

    max_tokens: int = Field(ge=1, le=MAX_INT)
    stop_sequences: list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]] = Field(
        default_factory=list, max_length=MAX_STOPS
    )
    stream: bool = False
    temperature: float = Field(1.0, ge=0, le=1)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=MAX_INT)
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] = Field(
        "auto", description="accepted without effect: there is one tier"
    )

    def sampling_params(self) -> SamplingParams:
        """How to choose tokens. Raises RequestError, naming the field."""
        return SamplingParams(
            max_tokens=self.max_tokens,
            stop=self.stop_sequences,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
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
