"""Tools in the bodies of /v1/chat/completions: what is offered, what must be called, past calls."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, model_validator

from loire.base.request_values import shown
from loire.server.web.client_tools import TOOL_HINTS, ClientTool, HostedTool, without_hosted
from loire.server.web.ignored import note_ignored
from loire.server.web.strict import MAX_TOOLS, FunctionName, Name, StrictModel, Text, refuse
from loire.server.web.unions import read_as, told_by, up_to
from loire.text.tools.definitions import NO_PARAMETERS, Tool, ToolUse

MAX_SCHEMA = 100_000
"""Characters of one tool's parameters as JSON."""
INPUT_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}
"""Parameters of a custom tool, as a function."""


class FunctionDefinition(StrictModel):
    """A function that the model may call."""

    HINTS: ClassVar[frozenset[str]] = TOOL_HINTS

    name: FunctionName
    description: Text = ""
    parameters: dict[str, Any] = Field(
        default_factory=lambda: dict(NO_PARAMETERS),
        description="JSON schema of the object of its arguments",
    )
    strict: bool = Field(False, description="enforce the schema even where calls are free")

    @model_validator(mode="after")
    def _check_parameters(self) -> "FunctionDefinition":
        kind = self.parameters.get("type", "object")
        if kind != "object":
            refuse(
                f"the parameters of tool {self.name!r} must be a JSON schema of type 'object', "
                f"but the type is {shown(kind)}",
                "parameters",
            )
        properties = self.parameters.get("properties", {})
        if not isinstance(properties, dict):
            refuse(
                f"the parameters of tool {self.name!r} have 'properties' that are no object",
                "parameters",
            )
        size = len(json.dumps(self.parameters))
        if size > MAX_SCHEMA:
            refuse(
                f"the parameters of tool {self.name!r} are {size} characters of JSON, but at most "
                f"{MAX_SCHEMA} are taken",
                "parameters",
            )
        return self

    def as_tool(self) -> Tool:
        """The tool."""
        return Tool(
            name=self.name,
            description=self.description,
            parameters={"type": "object", **self.parameters},
            strict=self.strict,
        )


class FunctionTool(StrictModel):
    """A tool: a function."""

    DROPS_UNKNOWN: ClassVar[bool] = True

    type: Literal["function"]
    function: FunctionDefinition

    @property
    def name(self) -> str:
        """The tool's name."""
        return self.function.name

    def as_tool(self) -> Tool:
        """The tool."""
        return self.function.as_tool()


class CustomDefinition(StrictModel):
    """A tool whose input is free text. format: how the text shall look, told to the model."""

    HINTS: ClassVar[frozenset[str]] = TOOL_HINTS

    name: FunctionName
    description: Text = ""
    format: dict[str, Any] = Field(default_factory=dict)

    def as_tool(self) -> Tool:
        """The tool: a function of one text."""
        description = self.description
        grammar = self.format.get("grammar", self.format)
        if isinstance(grammar, dict) and isinstance(grammar.get("definition"), str):
            # Free text cannot be held to a grammar of its own inside a call; the model is told.
            note_ignored("tools.custom.format")
            syntax, definition = grammar.get("syntax", "lark"), grammar["definition"]
            description += f"\n\nThe input follows this grammar ({syntax}):\n{definition}"
        return Tool(
            name=self.name,
            description=description.strip(),
            parameters=INPUT_PARAMETERS,
            strict=False,
        )


class CustomTool(StrictModel):
    """A tool whose input is free text."""

    type: Literal["custom"]
    custom: CustomDefinition

    @property
    def name(self) -> str:
        """The tool's name."""
        return self.custom.name

    def as_tool(self) -> Tool:
        """The tool."""
        return self.custom.as_tool()


def kind_of_tool(value: Any) -> str:
    """The member of a union of tools that a tool is read as."""
    given = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    kind = given or "function"
    known = kind in ("function", "custom", "namespace") or not isinstance(kind, str)
    return str(kind) if known else "hosted"


ChatTool = Annotated[
    Annotated[FunctionTool, read_as("function")]
    | Annotated[CustomTool, read_as("custom")]
    | Annotated[HostedTool, read_as("hosted")],
    told_by(kind_of_tool),
]


class FunctionReference(StrictModel):
    """A function by its name."""

    name: FunctionName


class NamedTool(StrictModel):
    """One of the tools."""

    type: Literal["function", "custom"]
    function: FunctionReference | None = None
    custom: FunctionReference | None = None

    @model_validator(mode="after")
    def _check_kind(self) -> "NamedTool":
        if getattr(self, self.type) is None:
            refuse(f"{self.type!r} is required: it names the tool", self.type)
        return self

    @property
    def name(self) -> str:
        """The tool's name."""
        reference = self.function or self.custom
        assert reference is not None, "checked above"
        return reference.name


class AllowedTools(StrictModel):
    """Some of the tools, and whether one of them must be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], up_to(MAX_TOOLS, least=1)]


class AllowedToolsChoice(StrictModel):
    """The choice is among some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def kind_of_choice(value: Any) -> str:
    """The member of a union of choices that a choice is read as."""
    if isinstance(value, str):
        return "word"
    kind = value.get("type") if isinstance(value, dict) else None
    return "allowed" if kind == "allowed_tools" else "named"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], read_as("word")]
    | Annotated[AllowedToolsChoice, read_as("allowed")]
    | Annotated[NamedTool, read_as("named")],
    told_by(kind_of_choice),
]


class PastFunction(StrictModel):
    """What was called. arguments: JSON, or whatever came of an answer that was cut off."""

    DROPS_UNKNOWN: ClassVar[bool] = True

    name: FunctionName
    arguments: Text = ""


class PastCustom(StrictModel):
    """A custom tool that was called."""

    DROPS_UNKNOWN: ClassVar[bool] = True

    name: FunctionName
    input: Text = ""


class PastCall(StrictModel):
    """A call that an earlier message made."""

    DROPS_UNKNOWN: ClassVar[bool] = True

    id: Name
    type: Literal["function", "custom"] = "function"
    function: PastFunction | None = None
    custom: PastCustom | None = None

    @model_validator(mode="after")
    def _check_kind(self) -> "PastCall":
        if getattr(self, self.type) is None:
            refuse(f"{self.type!r} is required: it says what was called", self.type)
        return self

    def for_template(self) -> dict[str, Any]:
        """The call as a conversation holds it: a custom tool is a function of one text."""
        if self.custom is not None:
            arguments = json.dumps({"input": self.custom.input}, ensure_ascii=False)
            return past_call(self.id, self.custom.name, arguments)
        assert self.function is not None, "checked above"
        return past_call(self.id, self.function.name, self.function.arguments)


def past_call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    """A call as a conversation holds it."""
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments or "{}"},
    }


class FunctionCall(BaseModel):
    """What is called. arguments: a JSON object, as text."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call that the model makes."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class CustomCall(BaseModel):
    """What a custom tool is given."""

    name: str
    input: str


class CustomToolCall(BaseModel):
    """A call of a custom tool."""

    id: str
    type: Literal["custom"] = "custom"
    custom: CustomCall


class FunctionCallDelta(BaseModel):
    """What is new of a call: the name at its beginning, then pieces of its arguments."""

    name: str | None = None
    arguments: str | None = None


class CustomCallDelta(BaseModel):
    """What is new of a call of a custom tool: its name, then, once it is whole, its input."""

    name: str | None = None
    input: str | None = None


class ToolCallDelta(BaseModel):
    """What is new of one of the calls."""

    index: int
    id: str | None = None
    type: Literal["function", "custom"] | None = None
    function: FunctionCallDelta | None = None
    custom: CustomCallDelta | None = None


def tool_use(
    tools: Sequence[ClientTool | HostedTool], choice: ToolChoice, *, parallel: bool
) -> ToolUse | None:
    """How tools shall be used; None if none may be. Fails a validation, naming the field."""
    offered = [tool.as_tool() for tool in without_hosted(tools)]
    names = [tool.name for tool in offered]
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            refuse(f"two tools have the name {name!r}", "tools", index, "function", "name")
        seen.add(name)
    limit = None if parallel else 1
    if isinstance(choice, NamedTool):
        allowed = _known(names, [choice], "tool_choice", choice.type, "name")
        return ToolUse(tools=offered, mode="required", callable_names=allowed, max_calls=1)
    if isinstance(choice, AllowedToolsChoice):
        several = choice.allowed_tools
        allowed = _known(names, several.tools, "tool_choice", "allowed_tools", "tools")
        return ToolUse(tools=offered, mode=several.mode, callable_names=allowed, max_calls=limit)
    if choice == "required" and not offered:
        refuse("'tool_choice' is 'required', but there are no 'tools'", "tool_choice")
    if choice == "none" or not offered:
        return None
    return ToolUse(tools=offered, mode=choice, max_calls=limit)


def _known(names: Sequence[str], chosen: Sequence[NamedTool], *path: str) -> frozenset[str]:
    for tool in chosen:
        if tool.name not in names:
            offered = ", ".join(map(repr, names)) or "none"
            refuse(f"'tool_choice' names {tool.name!r}, but the tools offered are {offered}", *path)
    return frozenset(tool.name for tool in chosen)
