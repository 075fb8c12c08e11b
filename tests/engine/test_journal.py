"""What is remembered of unfinished requests, and in which order they go on after a death."""

from dataclasses import replace

import pytest

from loire.base.messages import EngineRequest, SequenceUpdate
from loire.base.sampling import SamplingParams
from loire.base.step import TokenLogprobs
from loire.engine.journal import MIN_PROOF, Journal


def request(request_id: str, n: int = 1) -> EngineRequest:
    return EngineRequest(request_id, (1, 2, 3), SamplingParams(n=n), seed=1)


def journal(*request_ids: str) -> Journal:
    made = Journal()
    for request_id in request_ids:
        made.add(request(request_id))
    return made


def send(journal: Journal) -> list[str]:
    """What is sent now, and begun at once."""
    ids = [entry.request.request_id for entry in journal.next_to_send()]
    journal.begin(ids)
    return ids


def give(journal: Journal, request_id: str, *token_ids: int, choice: int = 0) -> None:
    update = SequenceUpdate(request_id, choice, token_ids, num_cached_tokens=2)
    assert journal.accept(update) == update


def prove(journal: Journal, request_id: str, choice: int = 0) -> None:
    """What a request gives that was in work when an engine died, until it is cleared."""
    for token_id in range(MIN_PROOF):
        give(journal, request_id, token_id, choice=choice)


def crash(journal: Journal) -> str | None:
    culprit = journal.crashed()
    return None if culprit is None else culprit.request.request_id


def test_waiting_is_what_the_engine_has_not_begun() -> None:
    kept = journal("a", "b", "c")
    assert (kept.num_waiting, kept.num_waiting_tokens) == (3, 9)
    kept.next_to_send()
    assert kept.num_waiting == 3
    kept.begin(["a", "a", "gone"])
    give(kept, "b", 7)  # news, even if its beginning had not been told
    assert (kept.num_waiting, kept.num_waiting_tokens) == (1, 3)
    assert kept.remove("c")
    assert not kept.remove("c")
    assert (kept.num_waiting, kept.num_waiting_tokens) == (0, 0)
    assert crash(kept) is None
    assert (kept.num_waiting, kept.num_held, len(kept)) == (2, 2, 2)
    assert not kept.remove("a"), "the new engine does not have it yet"
    assert kept.num_waiting == 1


def test_waiting_sequences_are_those_that_requests_ask_for() -> None:
    kept = journal("a")
    kept.add(request("b", n=5))
    assert (kept.num_waiting, kept.num_waiting_sequences) == (2, 6)
    kept.begin(["b"])
    assert kept.num_waiting_sequences == 1


def test_a_request_goes_on_from_its_tokens() -> None:
    kept = Journal()
    kept.add(request("r", n=3))
    send(kept)
    give(kept, "r", 4, 5)
    give(kept, "r", 6, choice=1)
    ended = SequenceUpdate("r", 0, (7,), finish_reason="stop", num_cached_tokens=2)
    assert kept.accept(ended) == ended
    assert kept.accept(ended) is None, "it has ended"
    assert crash(kept) is None
    [entry] = kept.next_to_send()
    assert entry.to_send() == replace(entry.request, output_token_ids=((4, 5, 7), (6,), ()))
    assert entry.ended == {0}
    assert kept.end_choice("r", 2)
    assert "r" in kept
    assert kept.end_choice("r", 1)
    assert "r" not in kept


def test_a_request_that_gave_nothing_is_sent_as_it_was() -> None:
    kept = Journal()
    kept.add(request("r", n=2))
    send(kept)
    crash(kept)
    [entry] = kept.next_to_send()
    assert entry.to_send() is entry.request


def test_nothing_is_told_twice() -> None:
    def logprobs(*token_ids: int) -> tuple[TokenLogprobs, ...]:
        return tuple(TokenLogprobs((token_id,), (-1.0,), 1) for token_id in token_ids)

    kept = journal("r")
    send(kept)
    first = SequenceUpdate("r", 0, prompt_logprobs=logprobs(1, 2), num_cached_tokens=0)
    assert kept.accept(first) == first
    for cached in (16, 32):
        crash(kept)
        send(kept)
        again = SequenceUpdate("r", 0, prompt_logprobs=logprobs(1), num_cached_tokens=cached)
        assert kept.accept(again) == SequenceUpdate("r", 0)
        more = SequenceUpdate("r", 0, prompt_logprobs=logprobs(2, 3), num_cached_tokens=cached)
        told = kept.accept(more)
        assert told is not None
        assert told.prompt_logprobs == (logprobs(3) if cached == 16 else ())
        assert told.num_cached_tokens == 0
        for _ in range(MIN_PROOF):
            kept.accept(SequenceUpdate("r", 0, (5,), num_cached_tokens=cached))
    last = SequenceUpdate("r", 0, (9,), prompt_logprobs=logprobs(4), num_cached_tokens=0)
    assert kept.accept(last) == last


def test_one_kill_costs_nobody_anything() -> None:
    kept = journal("a", "b", "c", "d")
    assert send(kept) == ["a", "b", "c", "d"]
    give(kept, "a", 1)
    give(kept, "b", 1)
    assert crash(kept) is None
    assert send(kept) == ["a", "b"], "first those that gave tokens"
    assert send(kept) == []
    prove(kept, "a")
    assert send(kept) == []
    prove(kept, "b")
    assert send(kept) == ["c"], "then each suspect alone"
    kept.add(request("e"))
    assert send(kept) == []
    prove(kept, "c")
    assert send(kept) == ["d"]
    prove(kept, "d")
    assert send(kept) == ["e"], "then everything else"


def test_what_had_not_begun_is_no_suspect() -> None:
    kept = journal("a", "b")
    kept.next_to_send()
    assert crash(kept) is None
    assert send(kept) == ["a", "b"]


def test_a_request_in_work_at_two_deaths_is_not_sent_again() -> None:
    kept = journal("a", "b", "poison")
    assert send(kept) == ["a", "b", "poison"]
    for request_id in ("a", "b"):
        give(kept, request_id, 1)
    assert crash(kept) is None
    assert send(kept) == ["a", "b"]
    for request_id in ("a", "b"):
        prove(kept, request_id)
    assert send(kept) == ["poison"]
    assert crash(kept) == "poison"
    assert "poison" not in kept
    assert send(kept) == ["a", "b"]


def test_a_request_that_kills_at_a_certain_token_is_found() -> None:
    """It gives some tokens each time, up to the one that does harm; so do those beside it."""
    kept = journal("a", "poison")
    send(kept)
    for _ in range(20):
        give(kept, "a", 1)
        give(kept, "poison", 1)
    assert crash(kept) is None
    assert send(kept) == ["a", "poison"]
    give(kept, "a", 1)
    give(kept, "poison", 1)
    assert crash(kept) is None, "either of the two"
    assert send(kept) == ["a"]
    prove(kept, "a")
    assert send(kept) == ["poison"]
    give(kept, "poison", 1)
    assert crash(kept) == "poison"
    assert send(kept) == ["a"]


def test_two_kills_of_engines_that_work_cost_nobody_anything() -> None:
    kept = journal("a", "b")
    for _ in range(5):
        assert send(kept) == ["a", "b"]
        prove(kept, "a")
        prove(kept, "b")
        assert crash(kept) is None


def test_company_of_the_poison_is_cleared() -> None:
    kept = journal("a", "poison", "b")
    send(kept)
    assert crash(kept) is None, "any of the three"
    assert send(kept) == ["a"]
    prove(kept, "a")
    assert send(kept) == ["poison"], "suspects come before the rest"
    assert crash(kept) == "poison", "it was in work at both"
    assert send(kept) == ["a"]
    prove(kept, "a")
    assert send(kept) == ["b"], "still a suspect of the first death"


def test_what_a_request_brings_is_kept() -> None:
    kept = Journal()
    brought = replace(request("r", n=3), output_token_ids=((4, 5), (6,)))
    kept.add(brought)
    assert kept.next_to_send()[0].to_send().output_token_ids == ((4, 5), (6,), ())
    give(kept, "r", 7)
    give(kept, "r", 8, choice=2)
    crash(kept)
    [entry] = kept.next_to_send()
    assert entry.to_send() == replace(brought, output_token_ids=((4, 5, 7), (6,), (8,)))


def test_what_was_encoded_is_let_go_with_the_engine_that_would_have_got_it() -> None:
    kept = Journal()
    kept.add(request("r"), b"encoded")
    [entry] = kept.next_to_send()
    assert entry.encoded == b"encoded"
    crash(kept)
    assert entry.encoded is None


@pytest.mark.parametrize("end", ["abort", "finish"])
def test_a_suspect_that_ends_lets_others_pass(end: str) -> None:
    kept = journal("a", "b")
    send(kept)
    crash(kept)
    assert send(kept) == ["a"]
    if end == "abort":
        assert kept.remove("a")
    else:
        kept.accept(SequenceUpdate("a", 0, (1,), finish_reason="length"))
    assert send(kept) == ["b"]
    assert kept.remove("b")
    kept.add(request("c"))
    assert send(kept) == ["c"]
