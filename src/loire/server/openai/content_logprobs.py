"""Which of an answer's tokens its content consists of: their log-probabilities join to it.

The tokens of thoughts, of calls, of a stop string and of the end are not among them.
"""

from collections import deque
from collections.abc import Iterable, Sequence

from loire.base.outputs import PositionLogprobs
from loire.text.tokenizer import Tokenizer
from loire.text.tools.events import AnswerEvent, ContentDelta


class ContentPositions:
    """Picks positions by where their bytes lie, for one choice.

    begins_at_once: the answer has no thoughts, so the content begins with the text. Otherwise it
    begins where its first piece is found in what has come.
    """

    def __init__(self, tokenizer: Tokenizer, *, begins_at_once: bool) -> None:
        self._tokenizer = tokenizer
        self._waiting: deque[tuple[int, int, PositionLogprobs]] = deque()
        """First and last byte (behind it) of tokens of which it is not known yet."""
        self._num_bytes = 0
        """Of the tokens so far."""
        self._raw = bytearray()
        """Bytes of tokens until the content begins."""
        self._start = 0 if begins_at_once else None
        self._num_content = 0

    def add(
        self, positions: Sequence[PositionLogprobs], events: Iterable[AnswerEvent]
    ) -> list[PositionLogprobs]:
        """Enter what is new; the positions that are certain to be of the content, in order."""
        for position in positions:
            token_id = next(iter(position))
            hidden = token_id in self._tokenizer.special_ids
            data = b"" if hidden else self._tokenizer.token_bytes(token_id)
            begin, self._num_bytes = self._num_bytes, self._num_bytes + len(data)
            self._waiting.append((begin, self._num_bytes, position))
            if self._start is None:
                self._raw += data
        for event in events:
            if isinstance(event, ContentDelta) and event.text:
                piece = event.text.encode()
                if self._start is None:
                    self._start = max(self._raw.rfind(piece), 0)
                    self._raw.clear()
                self._num_content += len(piece)
        return self._certain()

    def _certain(self) -> list[PositionLogprobs]:
        if self._start is None:
            return []
        end, certain = self._start + self._num_content, []
        while self._waiting and self._waiting[0][0] < end:
            first, last, position = self._waiting.popleft()
            if first < last and last > self._start:
                certain.append(position)
        return certain
