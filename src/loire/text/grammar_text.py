"""From StructuredOutputs to the grammar text that llguidance compiles."""

import json
import re
from typing import Any

from loire.base.errors import RequestError
from loire.base.structured_outputs import StructuredOutputs
from loire.text.exact_numbers import as_rule, has_inexact
from loire.text.json_schema import ready_to_enforce

MAX_TEXT = 65_536
"""Characters of a schema, expression, grammar, or of all choices together."""
MAX_SHOWN = 400
"""Characters of the library's explanation that an error message repeats."""

WHITESPACE = r" |\r?\n[ \t]{0,20}"
"""Between two parts of a JSON text: one space, or a line break and an indentation. A model that
may write any number of blanks sometimes never stops."""

_GBNF_RULE = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)


def refuse(spec: StructuredOutputs, reason: str) -> RequestError:
    """The error that says what is wrong with a constraint."""
    shown = reason if len(reason) <= MAX_SHOWN else f"{reason[:MAX_SHOWN]} ..."
    return RequestError(f"structured_outputs.{spec.kind}: {shown}", param="structured_outputs")


def grammar_text(spec: StructuredOutputs) -> str:
    """llguidance's grammar for a constraint. Raises RequestError if it is too large or no JSON."""
    from llguidance import LLMatcher

    _check_size(spec)
    if spec.choice is not None:
        alternatives = "|".join(map(_literal, spec.choice))
        return LLMatcher.grammar_from_regex(alternatives)
    if spec.regex is not None:
        return LLMatcher.grammar_from_regex(spec.regex)
    if spec.grammar is not None:
        return LLMatcher.grammar_from_lark(_as_lark(spec, spec.grammar))
    return _json_grammar(spec)


def _check_size(spec: StructuredOutputs) -> None:
    if spec.choice is not None:
        size = sum(map(len, spec.choice))
    else:
        size = len(next(filter(None, (_schema(spec), spec.regex, spec.grammar)), ""))
    if size > MAX_TEXT:
        raise refuse(spec, f"has {size:,} characters, but at most {MAX_TEXT:,} are compiled")


def _schema(spec: StructuredOutputs) -> str | None:
    assert spec.json is None or isinstance(spec.json, str), "a mapping becomes text at once"
    return spec.json


def _json_grammar(spec: StructuredOutputs) -> str:
    from llguidance import LLMatcher

    compact = spec.disable_any_whitespace
    text = _schema(spec) or '{"type": "object"}'
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refuse(spec, f"is no JSON: {error}") from error
    if not isinstance(schema, dict):
        raise refuse(spec, f"a schema must be a JSON object, but is {text[:40]}")
    # All options are set, so that an "x-guidance" in the schema cannot change them.
    options: Any = {
        "item_separator": ",",
        "key_separator": ":",
        "whitespace_flexible": not compact,
        "whitespace_pattern": None if compact else WHITESPACE,
        "coerce_one_of": False,
        "lenient": False,
    }
    try:
        ready = ready_to_enforce(schema)
        if has_inexact(ready):
            rule = as_rule(ready, options)
            return LLMatcher.grammar_from_lark(f"%llguidance {{}}\nstart: {rule}\n")
        text = json.dumps(ready, ensure_ascii=False)
    except RequestError as error:
        raise refuse(spec, str(error)) from error
    try:
        return LLMatcher.grammar_from_json_schema(text, overrides=options)
    except ValueError as error:
        raise refuse(spec, str(error)) from error


def _as_lark(spec: StructuredOutputs, text: str) -> str:
    """A grammar in Lark's syntax, from that or from GBNF ("name ::= ...")."""
    if not _GBNF_RULE.search(text):
        return text
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return gbnf_to_lark(text)
    except RecursionError as error:
        raise refuse(spec, "is nested too deeply") from error
    except Exception as error:  # the library raises nothing more precise
        raise refuse(spec, f"cannot be read as GBNF: {error}") from error


def _literal(text: str) -> str:
    """A regular expression for exactly this text."""
    return "".join(
        char if char.isalnum() or ord(char) > 127 else f"\\x{ord(char):02x}" for char in text
    )
