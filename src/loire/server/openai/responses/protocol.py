"""Bodies of /v1/responses. https://platform.openai.com/docs/api-reference/responses"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from loire.base.sampling import SamplingParams
from loire.base.structured_outputs import StructuredOutputs
from loire.server.openai.chat_protocol import MAX_METADATA
from loire.server.openai.tools_protocol import AllowedTools as ChatAllowedTools
from loire.server.openai.tools_protocol import AllowedToolsChoice as ChatAllowedToolsChoice
from loire.server.openai.tools_protocol import (
    FunctionDefinition,
    FunctionReference,
    FunctionTool,
    NamedTool,
    tool_use,
)
from loire.server.openai.tools_protocol import ToolChoice as ChatToolChoice
from loire.server.web.errors import UNION_TAG
from loire.server.web.strict import (
    MAX_INT,
    MAX_MESSAGES,
    MAX_NAME,
    MAX_PARTS,
    MAX_TOOLS,
    FunctionName,
    Name,
    StrictModel,
    Text,
    refuse,
)
from loire.text.tools.definitions import ToolUse

_NO_BACKGROUND = "responses are made while the client waits; leave it out"


class ContentPart(StrictModel):
    """Text of a message. annotations and logprobs: of answers that are sent back, not read."""

    type: Literal["input_text", "output_text"]
    text: Text
    annotations: list[dict[str, Any]] = Field(default_factory=list, max_length=MAX_PARTS)
    logprobs: list[dict[str, Any]] = Field(default_factory=list, max_length=MAX_PARTS)

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_media(cls, data: Any) -> Any:
        kind = data.get("type") if isinstance(data, dict) else None
        if isinstance(kind, str) and kind not in ("input_text", "output_text"):
            refuse(
                f"a content part of type {kind!r} is not supported: this server reads text only",
                "type",
                kind="unsupported",
            )
        return data


def _text_or_list(value: Any) -> str:
    return f"{UNION_TAG}list" if isinstance(value, list) else f"{UNION_TAG}text"


Content = Annotated[
    Annotated[Text, Tag(f"{UNION_TAG}text")]
    | Annotated[list[ContentPart], Field(max_length=MAX_PARTS), Tag(f"{UNION_TAG}list")],
    Discriminator(_text_or_list),
]
Status = Literal["in_progress", "completed", "incomplete"]


class MessageItem(StrictModel):
    """A message. id and status: of answers that are sent back."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: Name = ""
    status: Status | None = None

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates expect it."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class FunctionCallItem(StrictModel):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: Name
    name: FunctionName
    arguments: Text
    id: Name = ""
    status: Status | None = None


class FunctionOutputItem(StrictModel):
    """What a call returned."""

    type: Literal["function_call_output"]
    call_id: Name
    output: Content
    id: Name = ""
    status: Status | None = None

    def for_template(self) -> dict[str, Any]:
        """The result as chat templates expect it."""
        parts = self.output
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": "tool", "content": text, "tool_call_id": self.call_id}


class ReasoningPart(StrictModel):
    """A piece of what the model thought."""

    type: Literal["reasoning_text"]
    text: Text


class ReasoningItem(StrictModel):
    """What the model thought before an earlier answer."""

    type: Literal["reasoning"]
    id: Name = ""
    summary: list[dict[str, Any]] = Field(default_factory=list, max_length=MAX_PARTS)
    content: list[ReasoningPart] = Field(default_factory=list, max_length=MAX_PARTS)
    status: Status | None = None


_ITEMS = ("message", "function_call", "function_call_output", "reasoning")


def _item_kind(value: Any) -> str:
    kind = value.get("type", "message") if isinstance(value, dict) else None
    return f"{UNION_TAG}{kind}" if kind in _ITEMS else f"{UNION_TAG}message"


Item = Annotated[
    Annotated[MessageItem, Tag(f"{UNION_TAG}message")]
    | Annotated[FunctionCallItem, Tag(f"{UNION_TAG}function_call")]
    | Annotated[FunctionOutputItem, Tag(f"{UNION_TAG}function_call_output")]
    | Annotated[ReasoningItem, Tag(f"{UNION_TAG}reasoning")],
    Discriminator(_item_kind),
]
Input = Annotated[
    Annotated[Text, Tag(f"{UNION_TAG}text")]
    | Annotated[list[Item], Field(min_length=1, max_length=MAX_MESSAGES), Tag(f"{UNION_TAG}list")],
    Discriminator(_text_or_list),
]


class FunctionToolParam(FunctionDefinition):
    """A function that the model may call."""

    type: Literal["function"]

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_kinds(cls, data: Any) -> Any:
        kind = data.get("type") if isinstance(data, dict) else None
        if isinstance(kind, str) and kind != "function":
            refuse(
                f"a tool of type {kind!r} is not supported: only functions are",
                "type",
                kind="unsupported",
            )
        return data

    def as_chat_tool(self) -> FunctionTool:
        """The tool in the form of the chat route."""
        definition = FunctionDefinition(
            name=self.name,
            description=self.description,
            parameters=self.parameters,
            strict=self.strict,
        )
        return FunctionTool(type="function", function=definition)


class FunctionChoice(StrictModel):
    """One of the tools, by its name."""

    type: Literal["function"]
    name: FunctionName


class AllowedChoice(StrictModel):
    """Some of the tools, and whether one of them must be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[FunctionChoice] = Field(min_length=1, max_length=MAX_TOOLS)


def _choice_kind(value: Any) -> str:
    if isinstance(value, str):
        return f"{UNION_TAG}word"
    kind = value.get("type") if isinstance(value, dict) else None
    return f"{UNION_TAG}allowed" if kind == "allowed_tools" else f"{UNION_TAG}named"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(f"{UNION_TAG}word")]
    | Annotated[AllowedChoice, Tag(f"{UNION_TAG}allowed")]
    | Annotated[FunctionChoice, Tag(f"{UNION_TAG}named")],
    Discriminator(_choice_kind),
]


class TextFormat(StrictModel):
    """The form of the answer: any text, a JSON object, or what a schema accepts."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Name = ""
    description: Text = ""
    # "schema" is a method of pydantic's models.
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool = Field(True, description="accepted: a schema is always enforced")

    @model_validator(mode="after")
    def _check_schema(self) -> "TextFormat":
        if (self.type == "json_schema") != (self.schema_ is not None):
            needed = "needs a" if self.schema_ is None else "has no"
            refuse(f"a format of type {self.type!r} {needed} 'schema'", "schema")
        return self

    def spec(self) -> StructuredOutputs | None:
        """The constraint; None for text."""
        if self.schema_ is not None:
            return StructuredOutputs(json=self.schema_)
        return StructuredOutputs(json_object=True) if self.type == "json_object" else None


class TextOptions(StrictModel):
    """How the text shall look."""

    UNSUPPORTED: ClassVar[Mapping[str, str]] = {
        "verbosity": "the models served here have no such setting; leave it out",
    }

    format: TextFormat = Field(default_factory=lambda: TextFormat.model_validate({}))


class ResponsesRequest(StrictModel):
    """A request for a response."""

    UNSUPPORTED: ClassVar[Mapping[str, str]] = {
        "conversation": "use 'previous_response_id'",
        "prompt": "there are no stored prompts; send 'input'",
        "reasoning": "the models served here have no such setting; leave it out",
        "max_tool_calls": "tools are called by the client; leave it out",
        "top_logprobs": "use the chat route for log-probabilities",
        "context_management": "nothing is dropped from the conversation; leave it out",
        "moderation": "this server does not moderate; leave it out",
        "prompt_cache_retention": "cached prefixes stay as long as there is room; leave it out",
        "stream_options": "streamed events are never padded; leave it out",
    }

    model: Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
    input: Input
    instructions: Text = Field("", description="a system message, not kept for the next response")
    previous_response_id: Name = Field("", description="go on from a response that was stored")
    max_output_tokens: int | None = Field(None, ge=1, le=MAX_INT)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    stream: bool = False
    store: bool = Field(True, description="whether it can be retrieved and gone on from")
    text: TextOptions = Field(default_factory=TextOptions)
    tools: list[FunctionToolParam] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    truncation: Literal["disabled"] = Field("disabled", description="too long a prompt is a 400")
    background: Literal[False] = Field(False, description=_NO_BACKGROUND)
    include: list[Name] = Field(default_factory=list, max_length=0)
    metadata: dict[Name, Name] = Field(default_factory=dict, max_length=MAX_METADATA)
    user: Name = Field("", description="accepted without effect")
    safety_identifier: Name = Field("", description="accepted without effect")
    prompt_cache_key: Name = Field("", description="accepted without effect")
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] = Field(
        "auto", description="accepted without effect: there is one tier"
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_items(cls, data: Any) -> Any:
        items = data.get("input") if isinstance(data, dict) else None
        for number, item in enumerate(items if isinstance(items, list) else ()):
            kind = item.get("type", "message") if isinstance(item, dict) else "message"
            if kind not in _ITEMS:
                refuse(
                    f"an input item of type {kind!r} is not supported: {', '.join(_ITEMS)} are",
                    "input",
                    number,
                    "type",
                    kind="unsupported",
                )
        return data

    @model_validator(mode="after")
    def _check_tools(self) -> "ResponsesRequest":
        self.tool_use()
        return self

    def messages(self) -> list[dict[str, Any]]:
        """The input as chat templates expect it."""
        if isinstance(self.input, str):
            return [{"role": "user", "content": self.input}]
        return as_messages(self.input)

    def tool_use(self) -> ToolUse | None:
        """How tools shall be used. Fails a validation, naming the field."""
        tools = [tool.as_chat_tool() for tool in self.tools]
        return tool_use(tools, _as_chat_choice(self.tool_choice), parallel=self.parallel_tool_calls)

    def sampling_params(self) -> SamplingParams:
        """How to choose tokens. Raises RequestError, naming the field."""
        return SamplingParams(
            max_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            structured_outputs=self.text.format.spec(),
        )


def as_messages(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Items as messages: thoughts and calls join the assistant's message that they belong to."""
    messages: list[dict[str, Any]] = []
    thoughts = ""
    for item in items:
        match item:
            case ReasoningItem():
                thoughts += "".join(part.text for part in item.content)
                continue
            case FunctionCallItem():
                function = {"name": item.name, "arguments": item.arguments}
                call = {"id": item.call_id, "type": "function", "function": function}
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": ""})
                messages[-1].setdefault("tool_calls", []).append(call)
            case _:
                messages.append(item.for_template())
        if thoughts and messages[-1]["role"] == "assistant":
            messages[-1]["reasoning_content"] = thoughts
        thoughts = ""
    return messages


def _as_chat_choice(choice: ToolChoice) -> ChatToolChoice:
    if isinstance(choice, FunctionChoice):
        return _named(choice)
    if isinstance(choice, AllowedChoice):
        tools = [_named(tool) for tool in choice.tools]
        allowed = ChatAllowedTools(mode=choice.mode, tools=tools)
        return ChatAllowedToolsChoice(type="allowed_tools", allowed_tools=allowed)
    return choice


def _named(choice: FunctionChoice) -> NamedTool:
    return NamedTool(type="function", function=FunctionReference(name=choice.name))


class InputDetails(BaseModel):
    """Where the input's tokens came from."""

    cached_tokens: int


class OutputDetails(BaseModel):
    """Thoughts are not counted apart."""

    reasoning_tokens: int = 0


class ResponsesUsage(BaseModel):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails = Field(default_factory=OutputDetails)
    total_tokens: int


class IncompleteDetails(BaseModel):
    """Why an answer is not complete."""

    reason: Literal["max_output_tokens"]


class ResponseBody(BaseModel):
    """A response. output: items of type message, function_call and reasoning."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    error: None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: bool
    previous_response_id: str | None
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    background: Literal[False] = False
    usage: ResponsesUsage | None = None
    metadata: dict[str, str]


class Deleted(BaseModel):
    """A response that was forgotten."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True
