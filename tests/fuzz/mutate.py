"""One change to a right model, drawn at random: of its bytes, or of what they mean."""

import copy
import json
import random
import struct
from typing import Any

import adapter_samples
import family_samples
import quantized_samples
import samples

INTEGERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    255,
    261,
    2**15,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**53,
    2**63,
    2**64 - 1,
)
FLOATS = (0.0, -1.0, 1e-45, 1e38, 1e300, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "",
    "x",
    "\0",
    "\ud800",
    "<|im_end|>",
    "{{",
    "{% for %}",
    "a" * 100_000,
    "\u2028",
    "no/../x",
)


def value(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value, likelier a strange one."""
    kinds = ["integer", "float", "text", "flag", "null", "digits"]
    kinds += ["list", "object", "deep"] if depth < 2 else []
    match rng.choice(kinds):
        case "integer":
            return rng.choice(INTEGERS)
        case "float":
            return rng.choice(FLOATS)
        case "text":
            return rng.choice(TEXTS)
        case "flag":
            return rng.random() < 0.5
        case "digits":
            return int("9" * rng.choice((20, 300, 4000)))
        case "list":
            return [value(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 1000)))]
        case "object":
            return {rng.choice(TEXTS): value(rng, depth + 1) for _ in range(rng.randrange(3))}
        case "deep":
            nested: Any = 1
            for _ in range(rng.choice((50, 400))):
                nested = [nested] if rng.random() < 0.5 else {"a": nested}
            return nested
        case _:
            return None


def json_value(rng: random.Random, whole: Any) -> Any:
    """A copy with one place of it changed, removed or repeated."""
    whole = copy.deepcopy(whole)
    place, key = _place(rng, whole)
    old = place[key]
    match rng.choice(("replace", "near", "remove", "swap", "grow")):
        case "near" if isinstance(old, int | float) and not isinstance(old, bool):
            place[key] = rng.choice((old + 1, old - 1, old * 2, -old, float(old), str(old), [old]))
        case "remove":
            del place[key]
        case "swap":
            other, name = _place(rng, whole)
            place[key], other[name] = copy.deepcopy(other[name]), copy.deepcopy(old)
        case "grow" if isinstance(old, list) and old:
            place[key] = old * rng.choice((2, 1000))
        case "grow" if isinstance(old, str):
            place[key] = old * rng.choice((2, 1000, 10_000))
        case _:
            place[key] = value(rng)
    return whole


def _place(rng: random.Random, whole: Any) -> tuple[Any, Any]:
    """Where in it something stands, not too often deep within a vocabulary."""
    at = whole
    while True:
        key = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
        inner = at[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.35:
            return at, key
        at = inner


def data(rng: random.Random, whole: bytes, most: int) -> bytes:
    """Bytes changed, cut, repeated or put in, within the first `most` of them."""
    changed = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(min(most, len(changed)) or 1)
        match rng.randrange(6):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                changed[at : at + 8] = struct.pack("<Q", rng.choice(INTEGERS) % 2**64)
            case 2:
                changed[at : at + 4] = struct.pack("<I", rng.choice(INTEGERS) % 2**32)
            case 3:
                del changed[at : at + rng.choice((1, 4, 100))]
            case 4:
                changed[at:at] = changed[at : at + rng.choice((1, 8, 1000))]
            case _:
                if rng.random() < 0.2:
                    del changed[at:]
    return bytes(changed)


def gguf(rng: random.Random) -> bytes:
    """A GGUF file with one mistake."""
    weights = rng.choice(list(samples.BLOCKS)) if rng.random() < 0.5 else "F32"
    keys = samples.metadata(rng.choice(("gpt2", "llama")), samples.size_for(weights))
    if rng.random() < 0.4:
        whole = samples.gguf(keys, weights)
        return data(rng, whole, len(whole) if rng.random() < 0.3 else 6000)
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(list(keys))
        kind, old = keys[name]
        choice = rng.randrange(4)
        if choice == 0:
            del keys[name]
        elif choice == 1 and kind == samples.ARRAY:
            keys[name] = kind, (old[0], _changed_items(rng, old))
        else:
            keys[name] = _typed(rng)
    try:
        return samples.gguf(keys, weights)
    except (struct.error, OverflowError, TypeError):  # the change does not fit its type
        return gguf(rng)


def _changed_items(rng: random.Random, array: tuple[int, list[Any]]) -> list[Any]:
    kind, items = array
    items = list(items)
    at = rng.randrange(len(items) or 1)
    match rng.randrange(4):
        case 0:
            items[at : at + 1] = []
        case 1:
            items *= rng.choice((2, 100))
        case 2:
            items[at] = rng.choice(items)
        case _:
            items[at] = rng.choice(TEXTS) if kind == samples.STRING else rng.choice((0, 2, 4, 99))
    return items


def _typed(rng: random.Random) -> tuple[int, Any]:
    kind = rng.choice((0, 3, samples.U32, samples.I32, samples.F32, 7, samples.STRING, 10, 11, 12))
    if kind == samples.STRING:
        return kind, rng.choice(TEXTS)
    if rng.random() < 0.2:
        return samples.ARRAY, (
            samples.U32,
            [rng.choice((0, 1, 2**32 - 1))] * rng.choice((0, 1, 261)),
        )
    return kind, rng.choice(FLOATS) if kind in (samples.F32, 12) else rng.choice(INTEGERS)


def directory(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """Name of the changed file, and a directory with one mistake."""
    if rng.random() < 0.3:
        contents = family_samples.files(rng.choice(list(family_samples.families())))
    else:
        contents = samples.files(
            "Unigram" if rng.random() < 0.2 else "BPE",
            sharded=rng.random() < 0.2,
            named=rng.random() < 0.2,
        )
    name = rng.choice(list(contents))
    contents[name] = _changed(rng, name, contents[name])
    return name, contents


def quantized(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """What is changed, and a directory of quantized weights with one mistake."""
    method = rng.choice(list(quantized_samples.WAYS))
    return quantized_samples.changed(rng, method, json_value, data)


def adapter(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """Name of the changed file, and an adapter's directory with one mistake."""
    return adapter_samples.changed(rng, json_value, data)


def _changed(rng: random.Random, name: str, content: Any) -> Any:
    if name.endswith(".safetensors") and rng.random() < 0.7:
        [length] = struct.unpack("<Q", content[:8])
        head = json_value(rng, json.loads(content[8 : 8 + length]))
        return samples.safetensors(head, content[8 + length :])
    if name == "chat_template.jinja":
        return _template(rng)
    if isinstance(content, bytes):
        return data(rng, content, 3000)
    if rng.random() < 0.15:
        return data(rng, json.dumps(content).encode(), 10_000)
    return json_value(rng, content)


PIECES = ("{{ ", " }}", "{% ", " %}", "for x in messages", "endfor", "if ", "else", "set a = ", "(")
PIECES += (")", "[", "]", "messages", "9" * 50, "**", "'a' * 10 ** 9", "|tojson", "|length", ".x")
PIECES += ("endif", "range(10 ** 9)", "macro m()", "endmacro", "m()", "namespace()", "~", "not ")


def _template(rng: random.Random) -> str:
    if rng.random() < 0.4:
        return data(rng, samples.TEMPLATE.encode(), 10_000).decode("utf-8", "replace")
    if rng.random() < 0.2:
        return rng.choice(PIECES) * rng.choice((100, 5000))
    return "".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 30)))
