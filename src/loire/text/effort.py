"""How much a model shall think before it answers, in the words of its own chat template.

Templates have one of two switches: a flag (enable_thinking of Qwen, GLM, Gemma, SmolLM; thinking
of DeepSeek, Granite, Kimi), or a level (reasoning_effort of gpt-oss and Mistral).
"""

from collections.abc import Mapping, Set
from typing import Any, Literal

from loire.base.errors import RequestError

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

FLAGS = ("enable_thinking", "thinking")
LEVEL = "reasoning_effort"
_NEAREST = {"minimal": "low", "xhigh": "high", "max": "high"}
"""Levels that templates do not know, and the nearest one that all do."""


def effort_variables(
    effort: Effort, variables: Set[str], source: str, *, thinks: bool
) -> Mapping[str, Any] | None:
    """What to set for a template; None if nothing of it, or of the model, answers to the effort.

    variables: those that the template reads; source: its text, where a level that it knows is
    written. thinks: whether the model does at all.

    Raises RequestError if it thinks and that cannot be switched off.
    """
    flags = {name: effort != "none" for name in FLAGS if name in variables}
    if LEVEL in variables:
        if f"'{effort}'" in source or f'"{effort}"' in source:
            return {**flags, LEVEL: effort}
        if effort != "none":
            return {**flags, LEVEL: _NEAREST.get(effort, effort)}
    if flags:
        return flags
    if effort == "none" and thinks:
        raise RequestError(
            "this model always thinks before it answers, and its chat template has no switch for "
            "that: leave the effort out, or ask for the least that it knows, 'low'",
            param="reasoning_effort",
        )
    return {} if effort == "none" else None
