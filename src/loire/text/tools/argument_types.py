"""Arguments that are written as plain text become values of the types that the schema names."""

import json
from collections.abc import Mapping
from typing import Any

from loire.text.json_schema import resolve

_WORDS = {"true": True, "false": False, "null": None, "none": None}
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "array": list,
    "object": dict,
}


def property_schema(schema: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """What a schema says of one property, references followed; nothing if it does not know it."""
    properties = schema.get("properties")
    found = properties.get(name) if isinstance(properties, Mapping) else None
    found = resolve(schema, found)
    return found if isinstance(found, Mapping) else {}


def is_text(schema: Mapping[str, Any]) -> bool:
    """Whether a value is a text and nothing else."""
    return _types(schema) == {"string"}


def argument_value(text: str, schema: Mapping[str, Any]) -> Any:
    """The value that a text stands for: of the schema's type where it can be, else the text."""
    types = _types(schema)
    if types == {"string"}:
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _WORDS.get(text.strip().lower(), text)
    if types and not _is_of(value, types) and "string" in types:
        return text
    return value


def as_json(arguments: Mapping[str, Any]) -> str:
    """Arguments as JSON text."""
    return json.dumps(arguments, ensure_ascii=False)


def _types(schema: Mapping[str, Any]) -> set[str]:
    """The types that values may have; none if nothing is said."""
    kinds = schema.get("type")
    if isinstance(kinds, str):
        return {kinds}
    if isinstance(kinds, list):
        return {kind for kind in kinds if isinstance(kind, str)}
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(values, list):
        return {"string"} if all(isinstance(value, str) for value in values) else set()
    parts = schema.get("anyOf", schema.get("oneOf"))
    if isinstance(parts, list) and all(isinstance(part, Mapping) for part in parts):
        found = [_types(part) for part in parts]
        return set().union(*found) if all(found) else set()
    return set()


def _is_of(value: Any, types: set[str]) -> bool:
    if value is None:
        return "null" in types
    if isinstance(value, bool):
        return "boolean" in types
    return any(
        isinstance(value, kind) for name, kind in _TYPES.items() if name in types - {"boolean"}
    )
