"""How the families of models write tool calls: forms of JSON; others have files of their own."""

from dataclasses import dataclass

from loire.text.tools.blocks import Block


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
        single: a call ends the answer.
        block: how calls are written that are no JSON object; what concerns these is not used then.
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
    single: bool = False
    block: Block | None = None
    before: str
    between: str
    after: str

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts with a meaning of their own, which a tokenizer may hold as special tokens."""
        own = (self.opening, self.closing, "[ARGS]", "[CALL_ID]")
        block = () if self.block is None else (*self.block.tokens, *self.block.around)
        return tuple(marker for marker in (*own, *block) if marker)

    @property
    def first_mark(self) -> str:
        """What stands before the first call of an answer."""
        around = () if self.block is None else self.block.around
        return around[0] if around else self.opening


def _each_marked(name: str, opening: str, closing: str, *, bare: bool = False) -> ToolFormat:
    """Objects of JSON, each on a line of its own between marks."""
    return ToolFormat(
        name=name,
        opening=opening,
        closing=closing,
        bare=bare,
        separators=",;" if bare else ",",
        before=f"{opening}\n",
        between=f"\n{closing}\n{opening}\n",
        after=f"\n{closing}",
    )


def _listed(name: str, opening: str, closing: str = "") -> ToolFormat:
    """A list of objects of JSON behind a mark."""
    return ToolFormat(
        name=name,
        opening=opening,
        closing=closing,
        before=f"{opening}[",
        between=", ",
        after=f"]{closing}",
    )


HERMES = _each_marked("hermes", "<tool_call>", "</tool_call>")
"""Hermes 2 Pro, Qwen 2.5 and 3 and many others."""

GENERIC = _each_marked("generic", "<tool_call>", "</tool_call>", bare=True)
"""For templates that know nothing of tools: explained in the system prompt (prompt.py). Small
models often leave the marks out, so an object alone is taken as a call too."""

NEMOTRON = _listed("nemotron", "<TOOLCALL>", "</TOOLCALL>")
"""Nemotron Nano v2 and its elders."""

GRANITE = _listed("granite", "<|tool_call|>")
"""Granite 3. Granite 4 writes as Hermes does."""

PHI = _listed("phi", "<|tool_call|>", "<|/tool_call|>")
"""Phi-4-mini."""

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

_MISTRAL_ID = 9
"""Letters and digits of a call's id, which Mistral's templates insist on."""

MISTRAL = ToolFormat(
    name="mistral",
    opening="[TOOL_CALLS]",
    named=True,
    id_length=_MISTRAL_ID,
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
    id_length=_MISTRAL_ID,
    before="[TOOL_CALLS]",
    between="[TOOL_CALLS]",
    after="",
)
"""Mistral's newer models (Magistral, Devstral, Ministral 3): name and arguments, each marked."""
