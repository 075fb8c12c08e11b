"""Schemas with whole numbers that no double holds, as grammars: the library computes with doubles.

Only the way to such a number is written out, in llguidance's dialect of Lark; all beside it stays a
schema. The way can lead through closed objects, lists and alternatives.
"""

import json
from collections.abc import Mapping
from typing import Any

from loire.base.errors import RequestError
from loire.text.tools.blocks import separated

MAX_EXACT = 2**53
"""Up to here every integer is a double."""
MAX_BOUND = 2**63 - 1024
"""The largest double below 2**63, as far as bounds of integers reach."""
_DEFINITIONS = ("$defs", "definitions")
_OBJECT = frozenset(("type", "properties", "required", "additionalProperties", *_DEFINITIONS))
_ARRAY = frozenset(("type", "items", "minItems", "maxItems", *_DEFINITIONS))
_VALUES = frozenset(("type", "const", "enum", *_DEFINITIONS))
_CHOICE = frozenset(("anyOf", *_DEFINITIONS))


def is_inexact(value: Any) -> bool:
    """Whether a value is a whole number that no double holds, or the library no bound for."""
    if not isinstance(value, int) or abs(value) <= MAX_EXACT:
        return False
    return abs(value) > MAX_BOUND or int(float(value)) != value


def has_inexact(schema: Any) -> bool:
    """Whether a schema fixes a value that holds such a number."""
    if isinstance(schema, Mapping):
        values = [*schema.get("enum", ()), schema.get("const")]
        return any(map(_holds, values)) or any(
            has_inexact(part) for key, part in schema.items() if key not in ("enum", "const")
        )
    return isinstance(schema, list) and any(map(has_inexact, schema))


def as_rule(schema: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """What a schema accepts, as the right side of a rule. options: the library's, for what stays a
    schema. Raises RequestError (param structured_outputs) where a number cannot be reached."""
    return _Writer(schema, options).write(schema, "#")


def _holds(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds, value.values()))
    return any(map(_holds, value)) if isinstance(value, list) else is_inexact(value)


class _Writer:
    def __init__(self, root: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        self._definitions = {key: root[key] for key in _DEFINITIONS if key in root}
        self._options = options
        self._comma = _text(str(options["item_separator"]))
        self._colon = str(options["key_separator"])

    def write(self, schema: Any, path: str) -> str:
        """The schema at a path."""
        if not has_inexact(schema):
            whole = schema if isinstance(schema, Mapping) else {} if schema else {"not": {}}
            whole = {**whole, **self._definitions, "x-guidance": self._options}
            return f"%json {json.dumps(whole, ensure_ascii=False)}"
        keys = schema.keys()
        if keys & {"const", "enum"} and keys <= _VALUES:
            values = schema.get("enum", [schema.get("const")])
            return f"({' | '.join(_text(json.dumps(v, ensure_ascii=False)) for v in values)})"
        if "anyOf" in keys and keys <= _CHOICE:
            parts = enumerate(schema["anyOf"])
            return f"({' | '.join(self.write(part, f'{path}/anyOf/{i}') for i, part in parts)})"
        if "properties" in keys and keys <= _OBJECT and schema.get("additionalProperties") is False:
            return self._object(schema, path)
        if "items" in keys and keys <= _ARRAY:
            return self._array(schema, path)
        raise RequestError(
            f"a number at {path}: whole numbers beyond 2**53 are exact in closed objects, lists "
            f"and anyOf alone, not within {', '.join(sorted(keys - _DEFINITIONS_SET))}",
            param="structured_outputs",
        )

    def _object(self, schema: Mapping[str, Any], path: str) -> str:
        properties = {
            name: f"{_text(json.dumps(name, ensure_ascii=False) + self._colon)} "
            f"{self.write(part, f'{path}/properties/{name}')}"
            for name, part in schema["properties"].items()
        }
        inside = separated(properties, schema.get("required", ()), self._comma)
        return f'"{{" {inside} "}}"'

    def _array(self, schema: Mapping[str, Any], path: str) -> str:
        item = self.write(schema["items"], f"{path}/items")
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return '"[" "]"'
        more = f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
        full = f"{item} ({self._comma} {item}){more}"
        return f'"[" {full} "]"' if least else f'"[" ({full})? "]"'


_DEFINITIONS_SET = frozenset(_DEFINITIONS)


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
