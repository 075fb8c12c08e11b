"""Bodies of /v1/responses. https://platform.openai.com/docs/api-reference/responses"""

import json
from collections.abc import Mapping, Sequence, Set
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from loire.base.sampling import SamplingParams
from loire.base.structured_outputs import StructuredOutputs
from loire.server.openai.protocol import ACCOUNTING
from loire.server.openai.tools_protocol import AllowedTools as ChatAllowedTools
from loire.server.openai.tools_protocol import AllowedToolsChoice as ChatAllowedToolsChoice
from loire.server.openai.tools_protocol import (
    CustomDefinition,
    FunctionDefinition,
    FunctionReference,
    NamedTool,
    kind_of_tool,
    past_call,
    tool_use,
)
from loire.server.openai.tools_protocol import ToolChoice as ChatToolChoice
from loire.server.web.client_tools import HostedTool
from loire.server.web.errors import UNION_TAG
from loire.server.web.ignored import note_ignored
from loire.server.web.strict import (
    MAX_INT,
    MAX_MESSAGES,
    MAX_NAME,
    MAX_PARTS,
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
from loire.text.tools.definitions import ToolUse

MAX_METADATA = 16
"""Entries, as in OpenAI's API."""
_NO_BACKGROUND = "responses are made while the client waits; leave it out"


class ContentPart(StrictModel):
    """Text of a message. What else an answer that is sent back says of it is not read."""

    HINTS: ClassVar[frozenset[str]] = frozenset(("cache_control", "prompt_cache_breakpoint"))
    DROPS_UNKNOWN: ClassVar[bool] = True

    type: Literal["input_text", "output_text", "text", "summary_text", "reasoning_text"]
    text: Text

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_media(cls, data: Any) -> Any:
        kind = data.get("type") if isinstance(data, dict) else None
        if kind == "refusal":
            return {"type": "output_text", "text": data.get("refusal")}
        if isinstance(kind, str) and not kind.endswith("text"):
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
    | Annotated[list[ContentPart], UP_TO_PARTS, Tag(f"{UNION_TAG}list")],
    Discriminator(_text_or_list),
]
Status = Literal["in_progress", "completed", "incomplete"]


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
        return {"role": role, "content": _joined(self.content)}


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
        return {"role": "tool", "content": _joined(self.output), "tool_call_id": self.call_id}


class ReasoningItem(PastItem):
    """What the model thought before an earlier answer; what only its maker can read is dropped."""

    HINTS: ClassVar[frozenset[str]] = frozenset(("encrypted_content",))

    type: Literal["reasoning"]
    content: list[ContentPart] = Field(default_factory=list, max_length=MAX_PARTS, fail_fast=True)


class ItemReference(PastItem):
    """An item of a response that was stored."""

    type: Literal["item_reference"] = "item_reference"
    id: Name


class ForeignItem(BaseModel):
    """What another provider's own tools did, or settings of its agents: left out, with a note."""

    type: Name


def _joined(content: str | Sequence[ContentPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


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
        return f"{UNION_TAG}foreign"
    return f"{UNION_TAG}{kind}" if kind in _ITEMS else f"{UNION_TAG}message"


def _implied_kind(item: Mapping[str, Any]) -> str:
    """Of an item without a type: a reference is known by its having nothing but an id."""
    return "item_reference" if "id" in item and "role" not in item else "message"


Item = Annotated[
    Annotated[MessageItem, Tag(f"{UNION_TAG}message")]
    | Annotated[FunctionCallItem, Tag(f"{UNION_TAG}function_call")]
    | Annotated[CustomCallItem, Tag(f"{UNION_TAG}custom_tool_call")]
    | Annotated[FunctionOutputItem, Tag(f"{UNION_TAG}function_call_output")]
    | Annotated[FunctionOutputItem, Tag(f"{UNION_TAG}custom_tool_call_output")]
    | Annotated[ReasoningItem, Tag(f"{UNION_TAG}reasoning")]
    | Annotated[ItemReference, Tag(f"{UNION_TAG}item_reference")]
    | Annotated[ForeignItem, Tag(f"{UNION_TAG}foreign")],
    Discriminator(_item_kind),
]
Input = Annotated[
    Annotated[Text, Tag(f"{UNION_TAG}text")]
    | Annotated[
        list[Item],
        Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True),
        Tag(f"{UNION_TAG}list"),
    ],
    Discriminator(_text_or_list),
]


class FunctionToolParam(FunctionDefinition):
    """A function that the model may call."""

    type: Literal["function"]
    strict: bool = False


class CustomToolParam(CustomDefinition):
    """A tool whose input is free text."""

    type: Literal["custom"]


class NamespaceTool(StrictModel):
    """Tools under a common name; here they are offered like any others."""

    type: Literal["namespace"]
    name: FunctionName
    description: Text = ""
    tools: list["ResponseTool"] = Field(max_length=MAX_TOOLS, fail_fast=True)


ResponseTool = Annotated[
    Annotated[FunctionToolParam, Tag(f"{UNION_TAG}function")]
    | Annotated[CustomToolParam, Tag(f"{UNION_TAG}custom")]
    | Annotated[NamespaceTool, Tag(f"{UNION_TAG}namespace")]
    | Annotated[HostedTool, Tag(f"{UNION_TAG}hosted")],
    Discriminator(kind_of_tool),
]


def flat_tools(
    tools: Sequence[ResponseTool],
) -> list[FunctionToolParam | CustomToolParam | HostedTool]:
    """The tools, those of namespaces among them."""
    flat: list[FunctionToolParam | CustomToolParam | HostedTool] = []
    for tool in tools:
        flat += flat_tools(tool.tools) if isinstance(tool, NamespaceTool) else [tool]
    return flat


class FunctionChoice(StrictModel):
    """One of the tools, by its name."""

    type: Literal["function", "custom"]
    name: FunctionName


class AllowedChoice(StrictModel):
    """Some of the tools, and whether one of them must be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[FunctionChoice] = Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)


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

    HINTS: ClassVar[frozenset[str]] = frozenset(("verbosity",))

    format: TextFormat = Field(default_factory=lambda: TextFormat.model_validate({}))


class Reasoning(StrictModel):
    """How much to think before the answer; how thoughts are told is not for choosing."""

    HINTS: ClassVar[frozenset[str]] = frozenset(("summary", "generate_summary", "context", "mode"))

    effort: Effort | None = None


class ResponseStreamOptions(StrictModel):
    """How to stream: events are never padded."""

    HINTS: ClassVar[frozenset[str]] = frozenset(("include_obfuscation",))


class ResponsesRequest(StrictModel):
    """A request for a response."""

    UNSUPPORTED: ClassVar[Mapping[str, str]] = {
        "background": _NO_BACKGROUND,
        "conversation": "use 'previous_response_id'",
        "image": "this server answers with text; leave it out",
        "prompt": "there are no stored prompts; send 'input'",
        "moderation": "this server does not moderate; leave it out",
        "top_logprobs": "use the chat route for log-probabilities",
    }
    HINTS: ClassVar[frozenset[str]] = (ACCOUNTING - {"metadata", "store"}) | {
        "access_programs",
        "background_options",
        "context_management",
        "max_tool_calls",
    }
    NEUTRAL: ClassVar[Mapping[str, object]] = {"top_logprobs": 0}

    model: Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
    input: Input
    instructions: Text = Field("", description="a system message, not kept for the next response")
    previous_response_id: Name = Field("", description="go on from a response that was stored")
    max_output_tokens: int | None = Field(None, ge=1, le=MAX_INT)
    temperature: float | None = Field(None, ge=0, le=2, description=RECOMMENDED)
    top_p: float | None = Field(None, ge=0, le=1, description="0 keeps the likeliest token alone")
    stream: bool = False
    store: bool = Field(True, description="whether it can be retrieved and gone on from")
    text: TextOptions = Field(default_factory=TextOptions)
    top_k: int | None = Field(None, ge=-1, le=MAX_INT, description="0 or -1 keeps all (vLLM's)")
    ignore_eos: bool = Field(False, description="go on to max_output_tokens (vLLM's)")
    tools: list[ResponseTool] = Field(default_factory=list, max_length=MAX_TOOLS, fail_fast=True)
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    reasoning: Reasoning = Field(default_factory=Reasoning)
    stream_options: ResponseStreamOptions | None = None
    truncation: Literal["disabled", "auto"] = Field(
        "disabled", description="too long a prompt is a 400 in either case"
    )
    include: list[Name] = Field(
        default_factory=list,
        max_length=MAX_PARTS,
        fail_fast=True,
        description="nothing is left out to include",
    )
    metadata: dict[Name, Name] = Field(default_factory=dict, max_length=MAX_METADATA)

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_items(cls, data: Any) -> Any:
        items = data.get("input") if isinstance(data, dict) else None
        for number, item in enumerate(items if isinstance(items, list) else ()):
            kind = item.get("type") or "message" if isinstance(item, dict) else "message"
            if kind not in _ITEMS and (not isinstance(kind, str) or kind not in _FOREIGN):
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
        if "message.output_text.logprobs" in self.include:
            refuse(
                "'message.output_text.logprobs' is not supported here: use the chat route for "
                "log-probabilities",
                "include",
                kind="unsupported",
            )
        if self.include:
            note_ignored("include")
        if self.truncation != "disabled":
            note_ignored("truncation")
        return self

    @property
    def custom_names(self) -> Set[str]:
        """The custom tools among those offered."""
        return {tool.name for tool in flat_tools(self.tools) if isinstance(tool, CustomToolParam)}

    def items(self) -> Sequence[Item]:
        """The input as items."""
        if isinstance(self.input, str):
            return [MessageItem(role="user", content=self.input)]
        return self.input

    def tool_use(self) -> ToolUse | None:
        """How tools shall be used. Fails a validation, naming the field."""
        return tool_use(
            flat_tools(self.tools),
            _as_chat_choice(self.tool_choice),
            parallel=self.parallel_tool_calls,
        )

    def sampling_params(self) -> SamplingParams:
        """How to choose tokens. Raises RequestError, naming the field."""
        return SamplingParams(
            max_tokens=self.max_output_tokens,
            **given_sampling(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k),
            ignore_eos=self.ignore_eos,
            structured_outputs=self.text.format.spec(),
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


def _as_chat_choice(choice: ToolChoice) -> ChatToolChoice:
    if isinstance(choice, FunctionChoice):
        return _named(choice)
    if isinstance(choice, AllowedChoice):
        tools = [_named(tool) for tool in choice.tools]
        allowed = ChatAllowedTools(mode=choice.mode, tools=tools)
        return ChatAllowedToolsChoice(type="allowed_tools", allowed_tools=allowed)
    return choice


def _named(choice: FunctionChoice) -> NamedTool:
    reference = FunctionReference(name=choice.name)
    if choice.type == "custom":
        return NamedTool(type="custom", custom=reference)
    return NamedTool(type="function", function=reference)


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
    truncation: Literal["disabled", "auto"]
    reasoning: dict[str, Any]
    background: Literal[False] = False
    usage: ResponsesUsage | None = None
    metadata: dict[str, str]


class InputItems(BaseModel):
    """What was sent for a response."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    """A response that was forgotten."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True
