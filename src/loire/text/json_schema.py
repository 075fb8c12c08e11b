"""JSON schemas made ready for enforcing: exact where they can be, refused or loosened where not.

What the library cannot enforce is refused by keyword and path; for a schema that need not be
followed to the letter it becomes a hint. Objects that say nothing of further properties are closed,
as models need not invent any, and a small one would not end otherwise. Numbers are doubles in the
library: bounds move inwards to one that a double holds, so that what is written keeps the schema.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from loire.base.errors import RequestError
from loire.text.exact_numbers import MAX_BOUND, MAX_EXACT, is_inexact

FORMATS = frozenset(("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6",
                     "uuid", "uri"))  # fmt: skip
_ANNOTATIONS = frozenset((
    "$schema", "$id", "$comment", "$anchor", "$vocabulary", "title", "description", "default",
    "examples", "example", "deprecated", "readOnly", "writeOnly", "contentEncoding",
    "contentMediaType", "contentSchema", "discriminator", "externalDocs", "xml",
))  # fmt: skip
_UNENFORCEABLE = frozenset((
    "uniqueItems", "propertyNames", "not", "if", "then", "else", "contains", "minContains",
    "maxContains", "dependentRequired", "dependentSchemas", "dependencies",
    "unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef",
))  # fmt: skip
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "additionalItems")
_DEFINITIONS = ("$defs", "definitions")
_LOOK_AROUND = re.compile(r"\(\?(?:[=!]|<[=!])|(?<!\\)(?:\\\\)*\\[1-9]")
_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
_COMBINED = ("$ref", "anyOf", "oneOf", "allOf")

Schema = Any
"""A mapping, or a boolean."""


def ready_to_enforce(schema: Mapping[str, Any], *, strict: bool = True) -> dict[str, Any]:
    """A schema that can be compiled and means the same, but for what the module says.

    strict: refuse what cannot be enforced, instead of leaving it out. Raises RequestError (param
    structured_outputs), naming keyword and path.
    """
    try:
        for path, part in _parts(schema, "#"):
            _check_shape(part, path)
        ready = _Reader(schema, strict).read(schema, "#", closable=True)
    except RecursionError as error:
        raise RequestError("it is nested too deeply", param="structured_outputs") from error
    assert isinstance(ready, dict)
    return ready


class _Reader:
    def __init__(self, root: Mapping[str, Any], strict: bool) -> None:
        self._root = root
        self._strict = strict
        self._open = {path for path, part in _parts(root, "#") for path in _combined(part)}
        """Definitions that are one part of an object's description: they stay open."""
        for path in list(self._open):
            self._spread(path)

    def read(self, schema: Schema, path: str, *, closable: bool) -> Schema:
        """The schema at a path. closable: it describes an object alone."""
        if not isinstance(schema, Mapping):
            return schema
        closable = closable and path not in self._open
        alone = len(schema.keys() & {"allOf"}) == 0 or len(schema["allOf"]) == 1
        ready: dict[str, Any] = {}
        for key, value in schema.items():
            if key in _ANNOTATIONS:
                continue
            if key in _UNENFORCEABLE:
                self._unenforceable(key, value, path)
            elif key in _MAPS and isinstance(value, Mapping):
                ready[key] = {
                    name: self.read(part, f"{path}/{key}/{_escaped(name)}", closable=True)
                    for name, part in value.items()
                }
            elif key in _LISTS and isinstance(value, list):
                inside = closable and (key != "allOf" or alone) and not _describes_object(schema)
                ready[key] = [
                    self.read(part, f"{path}/{key}/{i}", closable=inside or key == "prefixItems")
                    for i, part in enumerate(value)
                ]
            elif key in _SINGLE:
                ready[key] = self.read(value, f"{path}/{key}", closable=True)
            elif self._keeps(key, value, schema, path):
                ready[key] = value
        self._read_numbers(ready, path)
        if closable:
            _close(ready)
        if "oneOf" in ready:
            self._read_one_of(ready, path)
        return ready

    def _keeps(self, key: str, value: Any, schema: Mapping[str, Any], path: str) -> bool:
        """Whether a keyword with a plain value stays."""
        if key == "format":
            kinds = schema.get("type", "string")
            if kinds != "string" and (not isinstance(kinds, list) or "string" not in kinds):
                return False  # such as int64: a note
            if value not in FORMATS:
                self._refuse("format", path, f"{value!r} is none of {', '.join(sorted(FORMATS))}")
                return False
        if key == "pattern" and isinstance(value, str) and _LOOK_AROUND.search(value):
            self._refuse("pattern", path, "look-around and back-references cannot be enforced")
            return False
        if key == "$ref" and isinstance(value, str):
            if not value.startswith("#"):
                self._refuse("$ref", path, f"{value!r} is not within the schema")
                return False
            if self._refers_to_itself(value):
                self._refuse("$ref", path, f"{value!r} leads to itself, so that nothing fits")
                return False
        return True

    def _unenforceable(self, key: str, value: Any, path: str) -> None:
        says_nothing = value is False if key == "uniqueItems" else value in ({}, [], True)
        if not says_nothing or key in ("not", "$dynamicRef", "$recursiveRef"):
            self._refuse(key, path, "cannot be enforced")

    def _refuse(self, key: str, path: str, reason: str) -> None:
        if self._strict:
            raise RequestError(
                f"{key!r} at {path}: {reason}; leave it out", param="structured_outputs"
            )

    def _refers_to_itself(self, reference: str) -> bool:
        seen: set[str] = set()
        while isinstance(reference, str) and reference not in seen:
            seen.add(reference)
            target = _at(self._root, reference)
            if not isinstance(target, Mapping) or "$ref" not in target:
                return False
            reference = target["$ref"]
        return True

    def _spread(self, path: str) -> None:
        """What an open definition consists of is open as well."""
        target = _at(self._root, path)
        if not isinstance(target, Mapping):
            return
        parts = [target, *(part for key in _LISTS[:3] for part in target.get(key, ()))]
        for part in parts:
            reference = part.get("$ref") if isinstance(part, Mapping) else None
            if isinstance(reference, str) and reference not in self._open:
                self._open.add(reference)
                self._spread(reference)

    def _read_numbers(self, ready: dict[str, Any], path: str) -> None:
        for key in _BOUNDS:
            if key in ready:
                self._read_bound(ready, key, path)
        values = ready.get("enum", [ready["const"]] if "const" in ready else [])
        large = [value for value in values if _is_number(value) and abs(value) > MAX_EXACT]
        if not large:
            return
        if any(map(is_inexact, values)):
            return  # written out as a grammar (exact_numbers.py)
        # Each as a range of its own: the library would write a constant with an exponent.
        kept = [value for value in values if value not in large]
        ranges = [{"type": "integer", "minimum": value, "maximum": value} for value in large]
        ready.pop("enum", None)
        ready.pop("const", None)
        ready.pop("type", None)
        ready["anyOf"] = ([{"enum": kept}] if kept else []) + ranges

    def _read_bound(self, ready: dict[str, Any], key: str, path: str) -> None:
        """Move a bound inwards to what the library computes with."""
        bound, is_low = ready.pop(key), "inimum" in key
        if isinstance(bound, float) and not math.isfinite(bound):
            return
        if abs(bound) < MAX_EXACT:
            ready[key] = bound
            return
        if is_low is (bound < 0):  # outwards of all that can be written
            limit = -MAX_BOUND if is_low else MAX_BOUND
            bound = max(bound, limit) if is_low else min(bound, limit)
        elif abs(bound) > MAX_BOUND:
            self._refuse(key, path, f"{bound} is beyond 2**63 - 1024, the largest bound there is")
            return
        inwards = int(bound) + (1 if is_low else -1) if "exclusive" in key else int(bound)
        plain = key.replace("exclusiveM", "m")
        near = _next_double(inwards, up=is_low)
        other: Any = ready.get(plain)
        if _is_number(other):
            near = max(near, other) if is_low else min(near, other)
        ready[plain] = near

    def _read_one_of(self, ready: dict[str, Any], path: str) -> None:
        """As anyOf, where no two branches can hold at once."""
        branches = [self._resolved(branch) for branch in ready["oneOf"]]
        for i, first in enumerate(branches):
            for j, second in enumerate(branches[:i]):
                if not _disjoint(first, second):
                    self._refuse("oneOf", path, f"branches {j} and {i} may both hold: use anyOf")
        any_of = ready.pop("oneOf")
        if "anyOf" in ready:
            ready["allOf"] = [*ready.get("allOf", []), {"anyOf": any_of}]
        else:
            ready["anyOf"] = any_of

    def _resolved(self, branch: Schema) -> Schema:
        for _ in range(8):
            if not isinstance(branch, Mapping) or "$ref" not in branch:
                break
            reference = branch["$ref"]
            target = _at(self._root, reference)
            branch = self.read(target, reference, closable=True) if target is not None else {}
        return branch


_SHAPES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "required": (lambda value: _is_list_of(value, str), "a list of names"),
    "type": (lambda value: isinstance(value, str) or _is_list_of(value, str), "a name, or several"),
    "enum": (lambda value: isinstance(value, list), "a list"),
    "$ref": (lambda value: isinstance(value, str), "a text"),
    "pattern": (lambda value: isinstance(value, str), "a text"),
    "format": (lambda value: isinstance(value, str), "a text"),
    **dict.fromkeys(
        _LISTS, (lambda value: _is_list_of(value, Mapping | bool), "a list of schemas")
    ),
    **dict.fromkeys(_MAPS, (lambda value: isinstance(value, Mapping), "schemas by name")),
    **dict.fromkeys(_BOUNDS, (lambda value: _is_number(value), "a number")),
}


def _check_shape(schema: Mapping[str, Any], path: str) -> None:
    """Raise RequestError where a keyword has no value of its kind."""
    for key, (fits, kind) in _SHAPES.items():
        if key in schema and not fits(schema[key]):
            raise RequestError(
                f"{key!r} at {path} must be {kind}, but is {str(schema[key])[:40]!r}",
                param="structured_outputs",
            )


def _is_list_of(value: Any, kind: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def resolve(root: Mapping[str, Any], schema: Schema) -> Schema:
    """A schema within another, references to it followed."""
    for _ in range(8):
        if not isinstance(schema, Mapping) or not isinstance(schema.get("$ref"), str):
            break
        schema = _at(root, schema["$ref"])
    return schema


def _parts(schema: Schema, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All schemas within a schema, with their paths."""
    if not isinstance(schema, Mapping):
        return
    yield path, schema
    for key, value in schema.items():
        if key in _MAPS and isinstance(value, Mapping):
            for name, part in value.items():
                yield from _parts(part, f"{path}/{key}/{_escaped(name)}")
        elif key in _LISTS and isinstance(value, list):
            for index, part in enumerate(value):
                yield from _parts(part, f"{path}/{key}/{index}")
        elif key in _SINGLE:
            yield from _parts(value, f"{path}/{key}")


def _combined(schema: Mapping[str, Any]) -> Iterator[str]:
    """What a schema refers to as one of several descriptions of the same object."""
    together = [key for key in _COMBINED if key in schema]
    many = len(together) > 1 or _describes_object(schema) or len(schema.get("allOf", ())) > 1
    if not many:
        return
    for key in together:
        for part in [schema] if key == "$ref" else schema[key]:
            if isinstance(part, Mapping) and isinstance(part.get("$ref"), str):
                yield part["$ref"]


def _describes_object(schema: Mapping[str, Any]) -> bool:
    return bool(schema.keys() & {"properties", "patternProperties", "additionalProperties"})


def _close(schema: dict[str, Any]) -> None:
    """No properties but those that are named, where it names some and says no more."""
    properties, required = schema.get("properties"), schema.get("required", [])
    says_more = schema.keys() & {"additionalProperties", "patternProperties", *_COMBINED}
    if not isinstance(properties, Mapping) or says_more or not isinstance(required, list):
        return
    if all(name in properties for name in required):
        schema["additionalProperties"] = False


def _disjoint(first: Schema, second: Schema) -> bool:
    """Whether no value can satisfy both, as far as that can be seen."""
    if not isinstance(first, Mapping) or not isinstance(second, Mapping):
        return first is False or second is False
    if not _types(first) & _types(second):
        return True
    values = [_values(first), _values(second)]
    if values[0] is not None and values[1] is not None:
        return not set(values[0]) & set(values[1])
    for one, other in ((first, second), (second, first)):
        for name in one.get("required", ()) if isinstance(one.get("required"), list) else ():
            properties = other.get("properties", {})
            if name not in properties and other.get("additionalProperties") is False:
                return _only_objects(one, other)
            mine = one.get("properties", {}).get(name)
            both = name in other.get("required", ()) and mine is not None and name in properties
            if both and _disjoint(mine, properties[name]):
                return _only_objects(one, other)
    return False


def _only_objects(*schemas: Mapping[str, Any]) -> bool:
    return any(_types(schema) == {"object"} for schema in schemas)


def _types(schema: Mapping[str, Any]) -> set[str]:
    everything = {"null", "boolean", "integer", "fraction", "string", "array", "object"}
    kinds = schema.get("type")
    if kinds is None:
        values = schema.get("enum", [schema["const"]] if "const" in schema else None)
        return everything if values is None else set(map(_type_of, values))
    found = {kinds} if isinstance(kinds, str) else set(kinds)
    return (found - {"number"}) | ({"integer", "fraction"} if "number" in found else set())


def _type_of(value: Any) -> str:
    for kind, name in ((bool, "boolean"), (int, "integer"), (float, "fraction"), (str, "string"),
                       (list, "array"), (dict, "object")):  # fmt: skip
        if isinstance(value, kind):
            return name
    return "null"


def _values(schema: Mapping[str, Any]) -> list[str] | None:
    """The only values that there can be, as text."""
    if "const" in schema:
        return [repr(schema["const"])]
    values = schema.get("enum")
    return list(map(repr, values)) if isinstance(values, list) else None


def _at(root: Schema, reference: Any) -> Schema:
    """What a reference within the schema names; None if there is nothing."""
    found = root
    for part in str(reference).removeprefix("#").split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        else:
            return None
    return found


def _next_double(value: int, *, up: bool) -> int:
    """The nearest integer that is a double, not below the value (up) or not above it."""
    near = float(value)
    if up and int(near) < value:
        near = math.nextafter(near, math.inf)
    if not up and int(near) > value:
        near = math.nextafter(near, -math.inf)
    return int(near)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
