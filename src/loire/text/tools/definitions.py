"""The tools of a conversation, and whether and which of them the model shall call."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

MAX_CALLS = 16
"""Most calls of one answer where the form of the calls is enforced: a small model that is made to
call tools in parallel would otherwise go on until its tokens run out."""

NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the model may call.

    parameters: JSON schema of the object that its arguments form.
    strict: the arguments follow the schema in any case, also where a call is free.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: dict(NO_PARAMETERS))
    strict: bool = False

    def for_template(self) -> dict[str, Any]:
        """The form in which chat templates expect a tool: OpenAI's."""
        function: dict[str, Any] = {"name": self.name}
        if self.description:
            function["description"] = self.description
        return {"type": "function", "function": {**function, "parameters": dict(self.parameters)}}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """What is offered, and what of it may or must be called.

    mode: "auto" leaves it to the model, "required" is at least one call and nothing else.
    callable_names: the tools that may be called; None is all.
    max_calls: most calls of one answer; None is any number.
    """

    tools: Sequence[Tool]
    mode: Literal["auto", "required"] = "auto"
    callable_names: frozenset[str] | None = None
    max_calls: int | None = None

    @property
    def callable_tools(self) -> tuple[Tool, ...]:
        """The tools that may be called, in the order in which they are offered."""
        names = self.callable_names
        return tuple(tool for tool in self.tools if names is None or tool.name in names)

    @property
    def enforced(self) -> bool:
        """Whether the form of calls is enforced while they are generated."""
        return (
            self.mode == "required"
            or self.max_calls is not None
            or any(tool.strict for tool in self.callable_tools)
        )
