"""Text from tokens as they come: whole characters, and the same as all at once."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from loire.base.errors import UnsupportedModelError
from loire.text.detokenizer import IncrementalDetokenizer
from loire.text.token_bytes import TokenBytes


@dataclass
class Source:
    """What the detokenizer sees of a tokenizer."""

    table: TokenBytes
    special_ids: frozenset[int]

    def token_bytes(self, token_id: int) -> bytes:
        return self.table[token_id]


def byte_level() -> Tokenizer:
    """Every byte, some merges across characters, and a special token at the end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {char: index for index, char in enumerate(alphabet)}
    merges = [("Ã", "©"), ("ð", "Ł"), ("Ġ", "a")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    rust = Tokenizer(models.BPE(vocabulary, merges))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens([AddedToken("<|end|>", special=True)])
    rust.add_tokens([AddedToken("<tool>", special=False)])
    return rust


def sentencepiece() -> Tokenizer:
    """Characters, a piece with a space, and bytes for what is unknown."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "é", "\u2581a"]
    rust = Tokenizer(
        models.BPE(
            {piece: index for index, piece in enumerate(pieces)},
            [("\u2581", "a")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    rust.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return rust


BYTE_LEVEL, SENTENCEPIECE = byte_level(), sentencepiece()


def source(rust: Tokenizer) -> Source:
    special = {i for i, token in rust.get_added_tokens_decoder().items() if token.special}
    return Source(TokenBytes(rust), frozenset(special))


def in_pieces(
    tokenizer: Source, prompt: list[int], tokens: list[int], skip: bool, data: st.DataObject
) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, prompt, skip)
    pieces, left = [], tokens
    while left:
        cut = data.draw(st.integers(1, len(left)))
        pieces.append(detokenizer.push(left[:cut]))
        left = left[cut:]
    return [*pieces, detokenizer.flush()]


IDS = st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1), max_size=24)


@given(IDS, st.booleans(), st.data())
def test_byte_level_equals_the_library(ids: list[int], skip: bool, data: st.DataObject) -> None:
    pieces = in_pieces(source(BYTE_LEVEL), [], ids, skip, data)
    assert "".join(pieces) == BYTE_LEVEL.decode(ids, skip_special_tokens=skip)


@given(st.text(max_size=12), st.data())
def test_real_text_comes_in_whole_characters(text: str, data: st.DataObject) -> None:
    for rust in (BYTE_LEVEL, SENTENCEPIECE):
        ids = rust.encode(text.replace(" ", "\u2581") if rust is SENTENCEPIECE else text).ids
        expected = text.replace("\u2581", " ") if rust is SENTENCEPIECE else text
        pieces = in_pieces(source(rust), [], ids, True, data)
        assert "".join(pieces) == expected
        if "\ufffd" not in text:
            assert not any("\ufffd" in piece for piece in pieces), "half a character"


@given(st.binary(min_size=1, max_size=12), st.data())
def test_sentencepiece_bytes_are_decoded_as_utf8(raw: bytes, data: st.DataObject) -> None:
    # The library writes one U+FFFD per byte of an invalid run; here it is Python's own count.
    ids = [SENTENCEPIECE.token_to_id(f"<0x{byte:02X}>") for byte in raw]
    pieces = in_pieces(source(SENTENCEPIECE), [], ids, True, data)
    assert "".join(pieces) == raw.decode("utf-8", "replace")


@given(st.integers(1, 3), st.data())
def test_a_character_that_begins_in_the_prompt(cut: int, data: st.DataObject) -> None:
    table = source(BYTE_LEVEL)
    ids = [BYTE_LEVEL.token_to_id(c) for c in ("ð", "Ł", "ĺ", "Ģ")]  # the bytes of one emoji
    assert BYTE_LEVEL.decode(ids) == "😀"
    assert "".join(in_pieces(table, ids[:cut], ids[cut:], True, data)) == "😀"


def test_an_added_token_is_its_own_text() -> None:
    rust = byte_level()
    rust.add_tokens([AddedToken("élan", special=False)])
    [token] = rust.encode("élan").ids
    # The library takes the letters for stand-ins of bytes and answers with U+FFFD.
    assert source(rust).token_bytes(token).decode() == "élan"


def test_ids_past_the_vocabulary_are_nothing() -> None:
    assert source(BYTE_LEVEL).token_bytes(10**6) == b""


def test_an_unknown_decoder_is_refused() -> None:
    rust = Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    rust.decoder = decoders.WordPiece()
    with pytest.raises(UnsupportedModelError, match=r"decodes with \['WordPiece'\]"):
        TokenBytes(rust)
