"""The bytes behind a token.

Within a text, every token of the supported kinds stands for fixed bytes, whatever its neighbours:
byte-level BPE writes each byte as one printable character, SentencePiece writes a space as U+2581
and unknown bytes as <0xNN>. So detokenization is concatenation of bytes.
"""

import json
import re
from functools import cache

from tokenizers import Tokenizer as RustTokenizer

from loire.base.errors import UnsupportedModelError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes(dict[int, bytes]):
    """Token id -> bytes, worked out when first asked for."""

    def __init__(self, rust: RustTokenizer) -> None:
        super().__init__()
        self._rust = rust
        self._added = {i: token.content for i, token in rust.get_added_tokens_decoder().items()}
        decoders = _decoder_types(json.loads(rust.to_str())["decoder"])
        self._byte_level = "ByteLevel" in decoders
        if not self._byte_level and not decoders & {"Replace", "Metaspace"}:
            raise UnsupportedModelError(
                f"the tokenizer decodes with {sorted(decoders) or 'nothing'}; Loire knows "
                f"byte-level BPE and SentencePiece"
            )

    def __missing__(self, token_id: int) -> bytes:
        value = self._find(token_id)
        self[token_id] = value
        return value

    def _find(self, token_id: int) -> bytes:
        token = self._rust.id_to_token(token_id)
        if token is None:
            return b""  # ids past the vocabulary, which padded embeddings make possible
        if self._byte_level:
            if token_id in self._added:
                return token.encode()
            table = _byte_of_character()
            return bytes(table[char] for char in token if char in table)
        match = _BYTE_TOKEN.fullmatch(token)
        if match:
            return bytes([int(match.group(1), 16)])
        return token.replace("\u2581", " ").encode()


def _decoder_types(decoder: object) -> set[str]:
    if not isinstance(decoder, dict):
        return set()
    nested = [_decoder_types(inner) for inner in decoder.get("decoders", ())]
    return {str(decoder.get("type"))}.union(*nested)


@cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins: printable Latin-1 for itself, the rest from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return table
