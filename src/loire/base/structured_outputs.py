"""What form an output must have: a JSON schema, a regular expression, a choice or a grammar."""

import json as json_text
from collections.abc import Mapping
from dataclasses import dataclass

from loire.base import request_values as values
from loire.base.errors import RequestError

OUTGROWN = "what it allows here is beyond its bounds"
"""In the error of a sequence whose constraint, not the engine, is the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputs:
    """A constraint on the output, under the names of vLLM's ``structured_outputs``.

    Exactly one of the first five is given. Plain strings, booleans and tuples, so that it can
    cross a socket; `text.grammar` compiles it.

    Attributes:
        json: a JSON schema, as JSON text (a mapping is written as text).
        json_object: any JSON object.
        regex: a regular expression that the whole output matches (Rust's syntax; no look-around
            and no back-references).
        choice: one of these strings.
        grammar: a context-free grammar with the rule ``start`` in Lark's syntax, or with the
            rule ``root`` in llama.cpp's GBNF.
        disable_any_whitespace: JSON without any whitespace between its parts. Otherwise a model
            may put some there, but never an endless run of it.

    Raises RequestError, naming the field, if it is not exactly one or the one is empty.
    """

    json: str | Mapping[str, object] | None = None
    json_object: bool = False
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    disable_any_whitespace: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.json, Mapping):
            object.__setattr__(self, "json", _as_text(self.json))
        with values.under("structured_outputs", "structured_outputs: "):
            self._settle()
        self._check()

    def _settle(self) -> None:
        for name in ("json", "regex", "grammar"):
            if getattr(self, name) is not None:
                values.text(name, getattr(self, name))
        if self.choice is not None:
            object.__setattr__(self, "choice", values.texts("choice", self.choice))
        values.flag("json_object", self.json_object)
        values.flag("disable_any_whitespace", self.disable_any_whitespace)

    @property
    def kind(self) -> str:
        """The name of the one that is given."""
        return self._given()[0]

    @property
    def is_json(self) -> bool:
        """Whether the output is a JSON text."""
        return self.json_object or self.json is not None

    def _given(self) -> list[str]:
        given = ["json_object"] if self.json_object else []
        names = ("json", "regex", "choice", "grammar")
        return given + [name for name in names if getattr(self, name) is not None]

    def _check(self) -> None:
        given = self._given()
        if len(given) != 1:
            raise RequestError(
                f"structured_outputs needs exactly one of json, json_object, regex, choice and "
                f"grammar, but has {' and '.join(given) if given else 'none'}",
                param="structured_outputs",
            )
        if given[0] != "json_object" and not getattr(self, given[0]):
            raise RequestError(
                f"structured_outputs.{given[0]} is empty, so that nothing could be written",
                param="structured_outputs",
            )
        for index, text in enumerate(self.choice or ()):
            if not text:
                raise RequestError(
                    f"structured_outputs.choice must hold strings that are not empty, "
                    f"but item {index} is {text!r}",
                    param="structured_outputs",
                )
        if self.disable_any_whitespace and not self.is_json:
            raise RequestError(
                f"structured_outputs.disable_any_whitespace is for json and json_object, "
                f"not for {given[0]}: write the whitespace you want into it",
                param="structured_outputs",
            )


def _as_text(schema: Mapping[str, object]) -> str:
    try:
        return json_text.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RequestError(
            f"structured_outputs.json is no JSON: {error}", param="structured_outputs"
        ) from error
