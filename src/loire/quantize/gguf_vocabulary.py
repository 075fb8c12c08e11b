"""The vocabulary in a GGUF file's metadata, of a tokenizer.json: what loire.text.gguf_tokenizer
reads.

A tokenizer is made of it and tried on texts before anything is done: one that would cut them in
another way is refused.
"""

import json
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loire.base.errors import UnsupportedModelError
from loire.checkpoint.checkpoint import Checkpoint
from loire.checkpoint.gguf_model import CONTROL, USER_DEFINED, end_tokens
from loire.text.gguf_tokenizer import build_from_gguf, merges_from_scores
from loire.text.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer, name_of
from loire.text.tokenizer import Tokenizer

NORMAL, UNKNOWN, UNUSED, BYTE = 1, 2, 5, 6
"""More values of tokenizer.ggml.token_type."""
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "\u2581"
_PROBES = (
    "Hello, w\u00f6rld's 1234567\n\n\t\u4f60\u597d \U0001f642   x = y(3.14)\r\n  It'LL e\u0301 ",
    " a  b   c\n\n\n\u00e9t\u00e9 \u0928\u092e\u0938\u094d\u0924\u0947 \u2581 \ud55c\uad6d\uc5b4",
    "",
)
_OTHER_IDS = {"unk_token": "unknown", "pad_token": "padding"}
_END_KEYS = ("eos", "eot", "eom")


def made_vocabulary(checkpoint: Checkpoint, tokenizer: Tokenizer, text: str) -> dict[str, Any]:
    """Keys and values. text: what it is tried on.

    Raises UnsupportedModelError for a tokenizer that such a file cannot say.
    """
    parts = json.loads(tokenizer.rust.to_str())
    model = parts["model"]
    if model["type"] != "BPE" or not model["merges"]:
        raise _refusal(checkpoint, f"is of the kind {model['type']}, or has no merges")
    for token in parts["added_tokens"]:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise _refusal(checkpoint, f"takes what is beside {token['content'][:80]!r} into it")
    rows, highest = checkpoint.description.vocab_size, max(model["vocab"].values())
    if highest >= rows:
        raise UnsupportedModelError(
            f"{checkpoint.path}: the tokenizer has the token {highest}, but the embedding only "
            f"{rows} rows: no GGUF file can be made of this model"
        )
    tokens, types = _tokens(parts, rows)
    merges = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"]]
    kind = _with_scores if model.get("byte_fallback") else _byte_level
    found = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        **kind(checkpoint, parts, tokens, merges),
        **_ends(checkpoint, tokenizer),
        **_templates(checkpoint.chat_template),
    }
    _try(checkpoint, tokenizer, found, (*_PROBES, text))
    return found


def _refusal(checkpoint: Checkpoint, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{checkpoint.path}: the tokenizer {what}, which a GGUF file does not say: `loire "
        f"quantize` writes a directory of this model"
    )


def _tokens(parts: Mapping[str, Any], size: int) -> "tuple[list[str], array[int]]":
    """By their ids, as many as the embedding has rows."""
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = array("i", [UNUSED] * size)
    model = parts["model"]
    for token, index in model["vocab"].items():
        if index < size:
            is_byte = model.get("byte_fallback") and _BYTE_PIECE.fullmatch(token)
            tokens[index], types[index] = token, BYTE if is_byte else NORMAL
            if model.get("byte_fallback") and token == model.get("unk_token"):
                types[index] = UNKNOWN
    # (What has no row in the embedding is of no use to anybody.)
    for added in parts["added_tokens"]:
        index = added["id"]
        if index < size:
            tokens[index] = added["content"]
            if types[index] != UNKNOWN:
                types[index] = CONTROL if added["special"] else USER_DEFINED
    return tokens, types


def _byte_level(
    checkpoint: Checkpoint, parts: Mapping[str, Any], tokens: list[str], merges: list[list[str]]
) -> dict[str, Any]:
    patterns = tuple(_patterns(checkpoint, _steps(parts["pre_tokenizer"], "pretokenizers")))
    normalizers = [step["type"] for step in _steps(parts["normalizer"], "normalizers")]
    how = PreTokenizer(
        patterns,
        whole_words=bool(parts["model"].get("ignore_merges")),
        composes=normalizers == ["NFC"],
    )
    name = name_of(how)
    if name is None or normalizers not in ([], ["NFC"]):
        shown = " ".join((*normalizers, *patterns))
        raise _refusal(checkpoint, f"cuts text in a way that has no name there ({shown[:200]})")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
    }


def _steps(given: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    """Of a normalizer or a pre-tokenizer, sequences in sequences told one after another."""
    if given is None:
        return []
    if given["type"] != "Sequence":
        return [given]
    return [step for part in given[key] for step in _steps(part, key)]


def _patterns(checkpoint: Checkpoint, steps: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """As PreTokenizer has them."""
    digit, plain = PRE_TOKENIZERS["smollm"].patterns
    for step in steps:
        kind = step["type"]
        isolates = step.get("behavior") == "Isolated" and not step.get("invert")
        if kind == "Split" and isolates and "Regex" in step["pattern"]:
            yield step["pattern"]["Regex"]
        elif kind == "Digits" and step["individual_digits"]:
            yield digit
        elif kind == "ByteLevel" and not step["add_prefix_space"]:
            if step["use_regex"]:
                yield plain
        else:
            raise _refusal(checkpoint, f"cuts text by a step {kind}")


def _with_scores(
    checkpoint: Checkpoint, parts: Mapping[str, Any], tokens: list[str], merges: list[list[str]]
) -> dict[str, Any]:
    """SentencePiece's BPE: pieces that come of earlier merges score higher."""
    steps = _steps(parts["normalizer"], "normalizers")
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prepends = {"type": "Prepend", "prepend": _SPACE}
    if steps not in ([replaces], [prepends, replaces]) or _cuts(parts["pre_tokenizer"]):
        raise _refusal(checkpoint, "changes or cuts text before it looks for pieces")
    rank: dict[str, int] = {}
    for left, right in merges:
        rank.setdefault(left + right, len(rank))
    found: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": array("f", [-float(rank.get(token, 0)) for token in tokens]),
        "tokenizer.ggml.add_space_prefix": len(steps) == 2,
    }
    read = merges_from_scores(found, tokens)
    if {*read} != {(left, right) for left, right in merges} or [
        *dict.fromkeys(left + right for left, right in read)
    ] != [*rank]:
        raise _refusal(checkpoint, "has merges that do not follow from an order of its pieces")
    return found


def _cuts(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    """Whether text is cut. (Gemma's files cut at spaces, of which none are left by then.)"""
    return pre_tokenizer is not None and pre_tokenizer.get("pattern") != {"String": " "}


def _ends(checkpoint: Checkpoint, tokenizer: Tokenizer) -> dict[str, Any]:
    """Ids of special tokens, and which of them come before and after a text."""
    names = tokenizer.template_tokens
    ids = {kind: tokenizer.id_of(names[name]) for name, kind in _OTHER_IDS.items() if name in names}
    eos = tokenizer.id_of(names["eos_token"]) if "eos_token" in names else None
    ends = dict.fromkeys(([] if eos is None else [eos]) + [*tokenizer.eos_token_ids])
    ids |= {"bos": tokenizer.bos_token_id, **dict(zip(_END_KEYS, ends, strict=False))}
    before, after = _around(checkpoint, tokenizer, ids["bos"], next(iter(ends), None))
    return {
        **{f"tokenizer.ggml.{kind}_token_id": x for kind, x in ids.items() if x is not None},
        "tokenizer.ggml.add_bos_token": before,
        "tokenizer.ggml.add_eos_token": after,
    }


def _around(
    checkpoint: Checkpoint, tokenizer: Tokenizer, bos: int | None, eos: int | None
) -> tuple[bool, bool]:
    """Whether the begin token is put before a text, and the end token after it."""
    inside = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a")
    for before in (False, True):
        for after in (False, True):
            if whole == [*[bos] * before, *inside, *[eos] * after]:
                return before, after
    raise _refusal(checkpoint, "puts other tokens around a text than its begin and end")


def _templates(given: str | Mapping[str, str] | None) -> dict[str, Any]:
    """As the reader of chat templates has them."""
    if given is None:
        return {}
    if isinstance(given, str):
        return {"tokenizer.chat_template": given}
    others = [name for name in given if name != "default"]
    keys = {"default": "tokenizer.chat_template"}
    keys |= {name: f"tokenizer.chat_template.{name}" for name in others}
    return {"tokenizer.chat_templates": others} | {keys[name]: x for name, x in given.items()}


def _try(
    checkpoint: Checkpoint, tokenizer: Tokenizer, found: Mapping[str, Any], texts: Sequence[str]
) -> None:
    """Whether what is read again does the same. Raises UnsupportedModelError."""
    lost = {*tokenizer.eos_token_ids} - {*end_tokens(found)}
    if lost:
        raise _refusal(checkpoint, f"has more than three ends ({min(lost)} would be lost)")
    read = build_from_gguf(found)
    for text in texts:
        if read.encode(text).ids != tokenizer.encode(text):
            raise _refusal(checkpoint, f"cuts a text in a way of its own ({text[:40]!r}...)")
