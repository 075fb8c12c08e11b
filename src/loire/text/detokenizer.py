"""Text from tokens as they come, never half a character."""

import codecs
from collections.abc import Sequence, Set
from typing import Protocol

CONTEXT_TOKENS = 4
"""Tokens of the prompt that can hold the beginning of a character the output completes."""


class ByteSource(Protocol):
    """What the detokenizer needs of a tokenizer."""

    special_ids: frozenset[int]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for."""
        ...


class IncrementalDetokenizer:
    """Text of an output that continues a prompt, in constant time per token.

    The pieces, joined, are the bytes of all tokens decoded as UTF-8; bytes that can no longer
    become a character are replaced by U+FFFD. shown_ids: special tokens that are never skipped.
    """

    def __init__(
        self,
        tokenizer: ByteSource,
        prompt_token_ids: Sequence[int],
        skip_special_tokens: bool,
        shown_ids: Set[int] = frozenset(),
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids - shown_ids if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.push(prompt_token_ids[-CONTEXT_TOKENS:])

    def push(self, token_ids: Sequence[int]) -> str:
        """Take in tokens; the text that has become certain."""
        token_bytes, skipped = self._tokenizer.token_bytes, self._skipped
        data = b"".join(token_bytes(token) for token in token_ids if token not in skipped)
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is left when nothing more comes: U+FFFD for an unfinished character."""
        return self._decoder.decode(b"", final=True)
