"""Tools in the bodies of /v1/chat/completions: what is offered, what must be called, past calls."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from loire.server.web.errors import UNION_TAG
from loire.server.web.strict import MAX_TOOLS, FunctionName, Name, StrictModel, Text, refuse
from loire.text.tools.definitions import NO_PARAMETERS, Tool, ToolUse

MAX_SCHEMA = 100_000
"""Characters of one tool's parameters as JSON."""


class FunctionDefinition(StrictModel):
    """A function that the model may call."""

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
                f"but the type is {kind!r}",
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

    type: Literal["function"]
    function: FunctionDefinition

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


class FunctionReference(StrictModel):
    """A function by its name."""

    name: FunctionName


class NamedTool(StrictModel):
    """One of the tools."""

    type: Literal["function"]
    function: FunctionReference


class AllowedTools(StrictModel):
    """Some of the tools, and whether one of them must be called."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=MAX_TOOLS)


class AllowedToolsChoice(StrictModel):
    """The choice is among some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _kind_of_choice(value: Any) -> str:
    if isinstance(value, str):
        return f"{UNION_TAG}word"
    kind = value.get("type") if isinstance(value, dict) else None
    return f"{UNION_TAG}allowed" if kind == "allowed_tools" else f"{UNION_TAG}named"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(f"{UNION_TAG}word")]
    | Annotated[AllowedToolsChoice, Tag(f"{UNION_TAG}allowed")]
    | Annotated[NamedTool, Tag(f"{UNION_TAG}named")],
    Discriminator(_kind_of_choice),
]


class PastFunction(StrictModel):
    """What was called."""

    name: FunctionName
    arguments: Text = Field(description="a JSON object, as text")


class PastCall(StrictModel):
    """A call that an earlier message made."""

    id: Name
    type: Literal["function"] = "function"
    function: PastFunction

    def for_template(self) -> dict[str, Any]:
        """The call as a conversation holds it."""
        return {"id": self.id, "type": self.type, "function": dict(self.function)}


class FunctionCall(BaseModel):
    """What is called. arguments: a JSON object, as text."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call that the model makes."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class FunctionCallDelta(BaseModel):
    """What is new of a call: the name at its beginning, then pieces of its arguments."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(BaseModel):
    """What is new of one of the calls."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCallDelta


def tool_use(
    tools: Sequence[FunctionTool], choice: ToolChoice, *, parallel: bool
) -> ToolUse | None:
    """How tools shall be used; None if none may be. Fails a validation, naming the field."""
    offered = [tool.function.as_tool() for tool in tools]
    names = [tool.name for tool in offered]
    for index, name in enumerate(names):
        if name in names[:index]:
            refuse(f"two tools have the name {name!r}", "tools", index, "function", "name")
    limit = None if parallel else 1
    if isinstance(choice, NamedTool):
        allowed = _known(names, [choice], "tool_choice", "function", "name")
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
        if tool.function.name not in names:
            offered = ", ".join(map(repr, names)) or "none"
            refuse(
                f"'tool_choice' names {tool.function.name!r}, but the tools offered are {offered}",
                *path,
            )
    return frozenset(tool.function.name for tool in chosen)
