"""Tools that the client runs, and those that another provider runs on its servers."""

from collections.abc import Sequence
from typing import Protocol

from pydantic import BaseModel

from loire.server.web.ignored import note_ignored
from loire.server.web.strict import Name, refuse
from loire.text.tools.definitions import Tool

TOOL_HINTS = frozenset(
    (
        "allowed_callers",
        "async",
        "cache_control",
        "defer_loading",
        "eager_input_streaming",
        "input_examples",
        "output_schema",
    )
)
"""When and by whom a tool is loaded and called: here it is there at once, for the model alone."""


class HostedTool(BaseModel):
    """A tool that another provider runs on its servers, whatever else it says."""

    type: Name


class ClientTool(Protocol):
    """A tool that the client runs."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    def as_tool(self) -> Tool:
        """The tool."""
        ...


def without_hosted(tools: Sequence[ClientTool | HostedTool]) -> list[ClientTool]:
    """The tools that the client runs. Hosted ones are left out beside others, with a note; alone
    they fail the validation, as nothing would be left of what was asked for."""
    usable = [tool for tool in tools if not isinstance(tool, HostedTool)]
    for number, tool in enumerate(tools):
        if isinstance(tool, HostedTool):
            if not usable:
                refuse(
                    f"a tool of type {tool.type!r} is not supported: this server runs no tools, "
                    f"and knows those alone that the request describes",
                    "tools",
                    number,
                    "type",
                    kind="unsupported",
                )
            note_ignored(f"tools.{tool.type}")
    return usable
