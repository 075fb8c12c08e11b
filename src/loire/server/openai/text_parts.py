"""Pieces of texts in the bodies of OpenAI's API."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from loire.base.request_values import shown
from loire.server.web.strict import StrictModel, Text, refuse
from loire.server.web.unions import TextOrParts


class TextPart(StrictModel):
    """A piece of a message; a refusal that an assistant wrote is text like any other.

    What else an answer that is sent back says of it is not read. Each route has its own words for
    the type, and takes the others' too.
    """

    HINTS: ClassVar[frozenset[str]] = frozenset(("cache_control", "prompt_cache_breakpoint"))
    DROPS_UNKNOWN: ClassVar[bool] = True

    type: Literal["text", "input_text", "output_text", "summary_text", "reasoning_text"]
    text: Text

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_media(cls, data: Any) -> Any:
        kind = data.get("type") if isinstance(data, dict) else None
        if kind == "refusal":
            return {"type": "text", "text": data.get("refusal")}
        if isinstance(kind, str) and not kind.endswith("text"):
            refuse(
                f"a content part of type {shown(kind)} is not supported: this server reads "
                f"text only",
                "type",
                kind="unsupported",
            )
        return data


Content = TextOrParts[TextPart]


def joined(content: str | Sequence[TextPart]) -> str:
    """The whole text."""
    return content if isinstance(content, str) else "".join(part.text for part in content)
