"""Where news wait: who is woken, when, and what they are told."""

import pytest

from loire.base.errors import EngineError
from loire.base.messages import SequenceUpdate
from loire.engine.inbox import News, ThreadInbox


def one(token_id: int, *, ends: bool = False) -> list[SequenceUpdate]:
    return [SequenceUpdate("r", 0, (token_id,), finish_reason="length" if ends else None)]


def tokens(news: list[News]) -> list[int]:
    return [update.token_ids[0] for step in news for update in step.updates]


def test_a_reader_of_pieces_is_woken_by_each_step() -> None:
    inbox = ThreadInbox()
    inbox.put(one(1))
    inbox.put(one(2))
    assert tokens(list(inbox.take())) == [1]
    assert tokens(list(inbox.take())) == [2]


def test_a_reader_of_answers_is_woken_by_their_ends_and_by_a_pile() -> None:
    inbox = ThreadInbox(most_held=3)
    inbox.put(one(1))
    inbox.put(one(2, ends=True))
    for token_id in range(3, 8):
        inbox.put(one(token_id))
    first, pile = list(inbox.take()), list(inbox.take())
    assert tokens(first) == [1, 2]
    assert tokens(pile) == [3, 4, 5, 6]
    assert first[0].arrived_s <= first[1].arrived_s <= pile[0].arrived_s


def test_a_failure_comes_behind_what_was_held() -> None:
    inbox = ThreadInbox(most_held=3)
    inbox.put(one(1))
    inbox.fail(EngineError("it stopped"))
    assert tokens(list(inbox.take())) == [1]
    with pytest.raises(EngineError, match="it stopped"):
        inbox.take()
