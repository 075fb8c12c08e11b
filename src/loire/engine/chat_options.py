"""What a conversation may ask for beside its messages, in the words of OpenAI's API."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec

from loire.base import request_values as values
from loire.base.errors import RequestError
from loire.base.sampling import SamplingParams
from loire.base.structured_outputs import StructuredOutputs
from loire.engine.dialogue import Conversation
from loire.text.effort import Effort
from loire.text.tools.definitions import NO_PARAMETERS, Tool, ToolUse

Tools = Sequence[Mapping[str, Any]]
"""Functions that a model may call: {"type": "function", "function": {"name": ...,
"description": ..., "parameters": JSON schema, "strict": ...}}."""

ToolChoice = str | Mapping[str, Any]
"""auto, none, required, or {"type": "function", "function": {"name": ...}}."""

T = TypeVar("T")


class _Function(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str = ""
    parameters: dict[str, Any] = msgspec.field(default_factory=lambda: dict(NO_PARAMETERS))
    strict: bool | None = None


class _Tool(msgspec.Struct, forbid_unknown_fields=True):
    function: _Function
    type: Literal["function"] = "function"


class _Named(msgspec.Struct, forbid_unknown_fields=True):
    name: str


class _Choice(msgspec.Struct, forbid_unknown_fields=True):
    function: _Named
    type: Literal["function"] = "function"


class _Schema(msgspec.Struct, forbid_unknown_fields=True):
    schema: dict[str, Any] = msgspec.field(default_factory=lambda: {"type": "object"})
    name: str = ""
    description: str = ""
    strict: bool | None = None


class _Format(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _Schema | None = None


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """Options of a conversation.

    tools: in OpenAI's form. tool_choice: which of them may or must be called. response_format: of
    type text, json_object or json_schema. template_variables: what else the chat template reads.
    effort: how much to think first.
    """

    tools: Tools | None = None
    tool_choice: ToolChoice = "auto"
    response_format: Mapping[str, Any] | None = None
    template_variables: Mapping[str, Any] | None = None
    effort: Effort | None = None

    @property
    def given(self) -> bool:
        """Whether anything is asked for."""
        return self != ChatOptions()

    def conversation(self, messages: Sequence[Mapping[str, Any]]) -> Conversation:
        """A conversation under these options. Raises RequestError."""
        if self.effort is not None:
            values.one_of("reasoning_effort", self.effort, get_args(Effort))
        return Conversation(
            messages=messages,
            tools=tool_use(self.tools or (), self.tool_choice),
            variables=self.template_variables or {},
            effort=self.effort,
        )

    def params(self, params: SamplingParams) -> SamplingParams:
        """The parameters with the form of the answer. Raises RequestError."""
        form = form_of(self.response_format)
        if form is None:
            return params
        if params.structured_outputs is not None:
            raise RequestError(
                "the output can have one form: leave out response_format, or structured_outputs",
                param="response_format",
            )
        return replace(params, structured_outputs=form)


def tool_use(tools: Tools, choice: ToolChoice = "auto") -> ToolUse | None:
    """How tools shall be used; None if none may be. Raises RequestError, naming the field."""
    if isinstance(tools, str | Mapping) or not isinstance(tools, Sequence):
        raise RequestError(f"tools must be a list, but is {values.shown(tools)}", param="tools")
    offered = [_tool(f"tools[{number}]", tool) for number, tool in enumerate(tools)]
    names = [tool.name for tool in offered]
    for name in names:
        if names.count(name) > 1:
            raise RequestError(f"two tools have the name {name!r}", param="tools")
    if not isinstance(choice, str):
        name = _read("tool_choice", choice, _Choice).function.name
        values.one_of("tool_choice", name, names)
        called = frozenset((name,))
        return ToolUse(tools=offered, mode="required", callable_names=called, max_calls=1)
    values.one_of("tool_choice", choice, ("auto", "none", "required"))
    if choice == "required" and not offered:
        raise RequestError("tool_choice is 'required', but there are no tools", param="tool_choice")
    if choice == "none" or not offered:
        return None
    return ToolUse(tools=offered, mode="required" if choice == "required" else "auto")


def form_of(response_format: Mapping[str, Any] | None) -> StructuredOutputs | None:
    """The form of an answer; None for any text. Raises RequestError."""
    if response_format is None:
        return None
    given = _read("response_format", response_format, _Format)
    if (given.type == "json_schema") != (given.json_schema is not None):
        needed = "needs a" if given.json_schema is None else "has no"
        raise RequestError(
            f"a response_format of type {given.type!r} {needed} 'json_schema'",
            param="response_format",
        )
    if given.json_schema is not None:
        return StructuredOutputs(json=given.json_schema.schema)
    return StructuredOutputs(json_object=True) if given.type == "json_object" else None


def _tool(name: str, tool: object) -> Tool:
    function = _read(name, tool, _Tool).function
    kind = function.parameters.get("type", "object")
    if kind != "object":
        raise RequestError(
            f"the parameters of tool {function.name!r} must be a JSON schema of type 'object', "
            f"but the type is {kind!r}",
            param=f"{name}.function.parameters",
        )
    return Tool(
        name=function.name,
        description=function.description,
        parameters={"type": "object", **function.parameters},
        strict=bool(function.strict),
    )


def _read(name: str, value: object, kind: type[T]) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise RequestError(f"{name}: {error}", param=name) from error
