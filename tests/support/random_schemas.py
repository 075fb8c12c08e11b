"""Random JSON schemas of the kinds that constrained decoding supports, as users write them."""

import random
from typing import Any

Schema = dict[str, Any]

_WORDS = ("name", "age", "city", "tags", "price", "done", "items", "size", "unit", "note")
_PATTERNS = (r"^[a-z]{2,6}$", r"^[A-Z][a-z]+$", r"^\d{3}-\d{4}$", r"^(yes|no)$")
_FORMATS = ("date", "time", "date-time", "email", "uuid", "ipv4")


def random_schema(rng: random.Random) -> Schema:
    """A schema whose root is an object, sometimes with a definition that is referred to."""
    schema = _object(rng, depth=3)
    if rng.random() < 0.2:
        schema["$defs"] = {"shared": _any(rng, depth=1)}
        name = rng.choice(_WORDS)
        schema["properties"][name] = {"$ref": "#/$defs/shared"}
    return schema


def _any(rng: random.Random, depth: int) -> Schema:
    leaves = (_string, _number, _integer, _choice, _constant, _simple)
    nested = (_object, _array, _array, _alternatives)
    if depth > 0 and rng.random() < 0.45:
        return rng.choice(nested)(rng, depth - 1)
    return rng.choice(leaves)(rng)


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(_WORDS, rng.randint(1, 4))
    schema: Schema = {
        "type": "object",
        "properties": {name: _any(rng, depth) for name in names},
        "required": [name for name in names if rng.random() < 0.7],
    }
    if rng.random() < 0.8:
        schema["additionalProperties"] = False
    return schema


def _array(rng: random.Random, depth: int) -> Schema:
    least = rng.randint(0, 2)
    return {
        "type": "array",
        "items": _any(rng, depth),
        "minItems": least,
        "maxItems": least + rng.randint(0, 3),
    }


def _alternatives(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [_any(rng, depth) for _ in range(rng.randint(2, 3))]}


def _string(rng: random.Random) -> Schema:
    schema: Schema = {"type": "string"}
    kind = rng.randrange(4)
    if kind == 0:
        schema["maxLength"] = rng.randint(1, 20)
        schema["minLength"] = rng.randint(0, schema["maxLength"])
    elif kind == 1:
        schema["pattern"] = rng.choice(_PATTERNS)
    elif kind == 2:
        schema["format"] = rng.choice(_FORMATS)
    return schema


def _integer(rng: random.Random) -> Schema:
    schema: Schema = {"type": "integer"}
    if rng.random() < 0.6:
        schema["minimum"] = rng.randint(-50, 50)
        schema["maximum"] = schema["minimum"] + rng.randint(0, 1000)
    return schema


def _number(rng: random.Random) -> Schema:
    schema: Schema = {"type": "number"}
    if rng.random() < 0.5:
        schema["minimum"] = rng.randint(-5, 5)
        schema["maximum"] = schema["minimum"] + rng.randint(1, 10)
    return schema


def _choice(rng: random.Random) -> Schema:
    return {"enum": rng.sample(["red", "green", 1, 2.5, True, None, "a b", 'q"'], 3)}


def _constant(rng: random.Random) -> Schema:
    return {"const": rng.choice(["fixed", 7, False, None])}


def _simple(rng: random.Random) -> Schema:
    return {"type": rng.choice(["boolean", "null", ["string", "null"], ["integer", "boolean"]])}
