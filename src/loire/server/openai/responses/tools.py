"""Tools in the bodies of /v1/responses: what is offered, what must be called."""

from collections.abc import Sequence
from typing import Annotated, Literal

from loire.server.openai.tools_protocol import (
    AllowedTools,
    AllowedToolsChoice,
    CustomDefinition,
    FunctionDefinition,
    FunctionReference,
    NamedTool,
    kind_of_choice,
    kind_of_tool,
)
from loire.server.openai.tools_protocol import ToolChoice as ChatToolChoice
from loire.server.web.client_tools import HostedTool
from loire.server.web.strict import MAX_TOOLS, FunctionName, StrictModel, Text
from loire.server.web.unions import Tools, read_as, told_by, up_to


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
    tools: Tools["ResponseTool"]


ResponseTool = Annotated[
    Annotated[FunctionToolParam, read_as("function")]
    | Annotated[CustomToolParam, read_as("custom")]
    | Annotated[NamespaceTool, read_as("namespace")]
    | Annotated[HostedTool, read_as("hosted")],
    told_by(kind_of_tool),
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
    tools: Annotated[list[FunctionChoice], up_to(MAX_TOOLS, least=1)]


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], read_as("word")]
    | Annotated[AllowedChoice, read_as("allowed")]
    | Annotated[FunctionChoice, read_as("named")],
    told_by(kind_of_choice),
]


def as_chat_choice(choice: ToolChoice) -> ChatToolChoice:
    """The choice as the chat route writes it."""
    if isinstance(choice, FunctionChoice):
        return _named(choice)
    if isinstance(choice, AllowedChoice):
        tools = [_named(tool) for tool in choice.tools]
        allowed = AllowedTools(mode=choice.mode, tools=tools)
        return AllowedToolsChoice(type="allowed_tools", allowed_tools=allowed)
    return choice


def _named(choice: FunctionChoice) -> NamedTool:
    reference = FunctionReference(name=choice.name)
    if choice.type == "custom":
        return NamedTool(type="custom", custom=reference)
    return NamedTool(type="function", function=reference)
