"""Tokenizers of GGUF files: every way of cutting a text, and where the begin token comes first."""

from array import array
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers

from loire.base.errors import UnsupportedModelError
from loire.text.gguf_tokenizer import build_from_gguf
from loire.text.pre_tokenizers import PRE_TOKENIZERS

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def built(pre: str, words: tuple[str, ...] = (), **keys: Any) -> Tokenizer:
    tokens = ["<s>", *ALPHABET, "ab", *words]
    return build_from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": array("i", [3] + [1] * (len(tokens) - 1)),
            "tokenizer.ggml.merges": ["a b"],
            "tokenizer.ggml.bos_token_id": 0,
            **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
        }
    )


def pieces(pre: str, text: str) -> list[str]:
    """What is merged by itself."""
    found = [text]
    for pattern in PRE_TOKENIZERS[pre].patterns:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        found = [piece for part in found for piece, _ in split.pre_tokenize_str(part)]
    return found


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("llama-bpe", "It's 12345 x\n\n y", ["It", "'s", " ", "123", "45", " x", "\n\n", " y"]),
        ("qwen2", "It'S 12", ["It", "'S", " ", "1", "2"]),
        ("deepseek-r1-qwen", "12", ["1", "2"]),
        ("qwen35", "x\u0301a 12", ["x\u0301a", " ", "1", "2"]),
        ("tekken", "HelloWorld's", ["Hello", "World", "'s"]),
        ("gpt-4o", "HelloWorld's 1234", ["Hello", "World's", " ", "123", "4"]),
        ("gpt-2", "It's  1234", ["It", "'s", " ", " 1234"]),
        ("smollm", "a 12", ["a", " ", "1", "2"]),
        ("tiny_aya", "12345", ["12", "345"]),
        ("deepseek-v3", "1234 \u4f60\u597d abc", ["123", "4", " ", "\u4f60\u597d", " abc"]),
        ("deepseek-coder", "a  b1\n", ["a", " ", " b", "1", "\n"]),
        ("kimi-k2", "\u4f60\u597dabc 1", ["\u4f60\u597d", "abc", " ", "1"]),
        ("falcon", "a+1234", ["a", "+", "123", "4"]),
        ("default", "a+1234", ["a", "+", "123", "4"]),
        ("bloom", "Hi, you", ["Hi", ",", " you"]),
        ("command-r", "x12", ["x", "1", "2"]),
        ("laguna", "a\n\nb", ["a", "\n\n", "b"]),
        ("afmoe", "1234567", ["1", "234", "567"]),
    ],
)  # fmt: skip
def test_texts_are_cut(pre: str, text: str, expected: list[str]) -> None:
    assert pieces(pre, text) == expected
    assert built(pre).decode(built(pre).encode(text).ids) == text


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_every_kind_gives_back_what_it_cut(pre: str) -> None:
    text = "It's 12345 W\u00f6rds,\r\n\n  \u4f60\u597d \uac00 \U0001f642  <sentinel:1> ...\t`x`"
    rust = built(pre)
    assert "".join(pieces(pre, text)) == text
    assert rust.decode(rust.encode(text).ids) == text


def test_the_begin_token_comes_first_where_the_format_says_so() -> None:
    for pre, begins in (("llama-bpe", True), ("tekken", True), ("qwen2", False), ("gpt-2", False)):
        assert (built(pre).encode("x").ids[0] == 0) is begins, pre
        assert built(pre, add_bos_token=True).encode("x").ids[0] == 0
        assert built(pre, add_bos_token=False).encode("x").ids[0] != 0


def test_whole_words_are_not_merged_again() -> None:
    words = ("abc",)  # there is no merge that leads to "abc"
    assert len(built("llama-bpe", words, add_bos_token=False).encode("abc").ids) == 1
    assert len(built("qwen2", words).encode("abc").ids) == 2


def test_pieces_with_spaces_and_given_merges() -> None:
    """Gemma 4: SentencePiece's pieces, merged in a given order, and bytes for what is missing."""
    tokens = ["<bos>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", "a", "b", "\u2581a", "\n",
              "\n\n", "ab"]  # fmt: skip
    rust = build_from_gguf(
        {
            "tokenizer.ggml.model": "gemma4",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": array("i", [3] + [6] * 256 + [1] * 7),
            "tokenizer.ggml.merges": ["\u2581 a", "\n \n", "a b"],
            "tokenizer.ggml.bos_token_id": 0,
            "tokenizer.ggml.add_bos_token": False,
        }
    )
    ids = rust.encode("ab a\n\nb\u00e9").ids
    assert [tokens[i] for i in ids] == [
        "<bos>", "ab", "\u2581a", "\n\n", "b", "<0xC3>", "<0xA9>"
    ]  # fmt: skip
    assert rust.decode(ids) == "ab a\n\nb\u00e9"


def test_other_kinds_are_refused_with_the_list() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'superbpe'.* Loire knows a\.x-4\.0, afmoe"):
        built("superbpe")
