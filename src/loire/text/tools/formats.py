"""How the families of models write tool calls, and which of these forms a chat template teaches."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """One way to write calls: `before` call (`between` call)* `after`.

    A call is a JSON object with the tool's name and its arguments, or, where calls are named, the
    name, `name_end`, and the arguments alone.

    Attributes:
        name: for messages and tests.
        opening: marks the beginning of a call in running text.
        closing: marks its end; a call is complete without.
        bare: the opening may be absent where a call begins the message.
        separators: characters that may stand between two calls under one opening.
        named: the tool's name stands before the arguments, outside the JSON.
        name_end: stands between the name and the arguments of a named call.
        arguments_key: key of the arguments in the call's object.
        id_length: characters of a call's id, if the template insists on a number.
    """

    name: str
    opening: str
    closing: str = ""
    bare: bool = False
    separators: str = ","
    named: bool = False
    name_end: str = ""
    arguments_key: str = "arguments"
    id_length: int | None = None
    before: str
    between: str
    after: str

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts with a meaning of their own, which a tokenizer may hold as special tokens."""
        return tuple(
            marker for marker in (self.opening, self.closing, "[ARGS]", "[CALL_ID]") if marker
        )


HERMES = ToolFormat(
    name="hermes",
    opening="<tool_call>",
    closing="</tool_call>",
    before="<tool_call>\n",
    between="\n</tool_call>\n<tool_call>\n",
    after="\n</tool_call>",
)
"""Hermes 2 Pro, Qwen 2.5 and 3 and many others."""

LLAMA = ToolFormat(
    name="llama",
    opening="<|python_tag|>",
    bare=True,
    separators=",;",
    arguments_key="parameters",
    before="",
    between="; ",
    after="",
)
"""Llama 3.1 to 3.3: an object alone."""

MISTRAL = ToolFormat(
    name="mistral",
    opening="[TOOL_CALLS]",
    named=True,
    id_length=9,
    before="[TOOL_CALLS] [",
    between=", ",
    after="]",
)
"""Mistral up to 2025: a list after a mark."""

MISTRAL_NAMED = ToolFormat(
    name="mistral named",
    opening="[TOOL_CALLS]",
    named=True,
    name_end="[ARGS]",
    id_length=9,
    before="[TOOL_CALLS]",
    between="[TOOL_CALLS]",
    after="",
)
"""Mistral's newer models (Magistral, Devstral, Ministral 3): name and arguments, each marked."""

GENERIC = ToolFormat(
    name="generic",
    opening="<tool_call>",
    closing="</tool_call>",
    bare=True,
    separators=",;",
    before="<tool_call>\n",
    between="\n</tool_call>\n<tool_call>\n",
    after="\n</tool_call>",
)
"""For templates that know nothing of tools: explained in the system prompt (prompt.py). Small
models often leave the marks out, so an object alone is taken as a call too."""

_NAME_AFTER_MARK = re.compile(r"\[TOOL_CALLS\]['\"]\s*[+~]\s*\w+[.\[]['\"]?(?:function|name)")


def choose_format(template: str) -> ToolFormat:
    """The form that a chat template's source teaches; GENERIC if it is none of those known."""
    if "[TOOL_CALLS]" in template:
        if "[ARGS]" in template or _NAME_AFTER_MARK.search(template):
            return MISTRAL_NAMED
        return MISTRAL
    # Qwen3-Coder and GLM use the same mark around XML of their own.
    if "<tool_call>" in template and "<function=" not in template and "<arg_key>" not in template:
        return HERMES
    if '"parameters": ' in template and ("<|python_tag|>" in template or "ipython" in template):
        return LLAMA
    return GENERIC
