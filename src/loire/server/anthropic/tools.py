"""Tools in Anthropic's API: what is offered, what must be called."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import model_validator

from loire.server.web.client_tools import TOOL_HINTS, HostedTool
from loire.server.web.strict import FunctionName, StrictModel, Text, refuse
from loire.server.web.unions import read_as, told_by
from loire.text.tools.definitions import Tool


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
    Annotated[ToolParam, read_as("custom")] | Annotated[HostedTool, read_as("hosted")],
    told_by(
        lambda value: (
            "custom"
            if not isinstance(value, dict) or value.get("type") in (None, "custom")
            else "hosted"
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
