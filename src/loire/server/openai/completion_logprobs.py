"""Log-probabilities in the form of /v1/completions: parallel lists, with offsets into the text."""

from collections.abc import Sequence
from typing import Any

from loire.base.outputs import PositionLogprobs
from loire.server.openai.answers import finite, likeliest
from loire.text.detokenizer import IncrementalDetokenizer
from loire.text.tokenizer import Tokenizer


class LogprobsWriter:
    """Writes one choice's log-probabilities, piece by piece.

    before: tokens that precede the choice's text; num_top: how many of the likeliest to show.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        before: Sequence[int],
        *,
        num_top: int,
        skip_special_tokens: bool,
    ) -> None:
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._detokenizer = IncrementalDetokenizer(tokenizer, before, skip_special_tokens)
        self._offset = 0

    def write(
        self, token_ids: Sequence[int], positions: Sequence[PositionLogprobs | None]
    ) -> dict[str, Any]:
        """The API's form of the next tokens; None where nothing predicts a token."""
        return {
            "tokens": [self._name(token_id) for token_id in token_ids],
            "token_logprobs": [
                None if position is None else finite(position[token_id].logprob)
                for token_id, position in zip(token_ids, positions, strict=True)
            ],
            "top_logprobs": [self._top(*pair) for pair in zip(token_ids, positions, strict=True)]
            if self._num_top
            else None,
            "text_offset": [self._advance(token_id) for token_id in token_ids],
        }

    def _top(self, token_id: int, position: PositionLogprobs | None) -> dict[str, float] | None:
        if position is None:
            return None
        chosen = (token_id, finite(position[token_id].logprob))
        shown: dict[str, float] = {}
        for top_id, logprob in (*likeliest(position, self._num_top), chosen):
            shown.setdefault(self._name(top_id), logprob)
        return shown

    def _name(self, token_id: int) -> str:
        data = self._tokenizer.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def _advance(self, token_id: int) -> int:
        """Where the token's text begins; the next one begins after it."""
        offset = self._offset
        self._offset += len(self._detokenizer.push((token_id,)))
        return offset
