"""allowed_token_ids and bad_words: what may come, given what was written."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from loire import LLM
from loire.base.errors import RequestError
from loire.base.sampling import SamplingParams
from loire.base.step import NewSequence
from loire.execution import sampler
from loire.execution.constraints import ConstraintFactory
from loire.execution.penalty_table import PenaltyTable
from loire.execution.sampling_state import SamplingState
from loire.execution.token_limits import TokenLimits
from loire.kernels.reference import ReferenceBackend
from loire.text.tokenizer import Tokenizer

VOCAB = 70


def allowed(limits: TokenLimits) -> set[int]:
    words = limits.bits().view("uint32")
    return {t for t in range(VOCAB) if int(words[t // 32]) >> t % 32 & 1}


def limits(written: tuple[int, ...] = (), **params: Any) -> TokenLimits:
    return TokenLimits(SamplingParams(**params), VOCAB, written)


def test_nothing_but_the_tokens_named() -> None:
    assert allowed(limits(allowed_token_ids=[0, 31, 32, 69])) == {0, 31, 32, 69}


def test_the_last_token_of_a_bad_word_does_not_follow_its_others() -> None:
    """Against what the rule says, for all short texts of three tokens."""
    bad = [(1,), (2, 3), (3, 3, 2), (2, 1, 2)]
    for length in range(5):
        for text in itertools.product((1, 2, 3), repeat=length):
            at_once = limits(text, bad_token_ids=bad)
            step_by_step = limits(bad_token_ids=bad)
            for token in text:
                step_by_step.record(token)
            wrong = {b[-1] for b in bad if text[len(text) - len(b) + 1 :] == b[:-1]}
            assert allowed(at_once) == allowed(step_by_step) == set(range(VOCAB)) - wrong


def sample(logits: torch.Tensor, **params: Any) -> sampler.Draw:
    def no_tokenizer() -> Tokenizer:
        raise AssertionError("there is no constraint")

    penalties = PenaltyTable(VOCAB, torch.device("cpu"))
    new = NewSequence(0, SamplingParams(**params), 0, 0, (1, 2))
    state = SamplingState(new, ConstraintFactory(no_tokenizer, VOCAB), penalties)
    [draw] = sampler.sample(logits, [state], [2], ReferenceBackend(), penalties).draws()
    return draw


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_likeliest_of_what_may_come_is_taken(temperature: float) -> None:
    logits = torch.full((1, VOCAB), -50.0)
    logits[0, 5], logits[0, 6], logits[0, 7] = 90.0, 60.0, 30.0
    more = {"temperature": temperature}
    assert sample(logits.clone(), **more).token_id == 5
    assert sample(logits.clone(), bad_token_ids=[(5,)], **more).token_id == 6
    assert sample(logits.clone(), allowed_token_ids=[7, 9], **more).token_id == 7
    both = sample(logits.clone(), allowed_token_ids=[5, 9], bad_token_ids=[(5,)], **more)
    assert both.token_id == 9
    nothing = sample(logits.clone(), allowed_token_ids=[5], bad_token_ids=[(5,)], **more)
    assert nothing.error == sampler.NOTHING_LEFT


@pytest.mark.parametrize(
    ("name", "value"),
    [("allowed_token_ids", []), ("allowed_token_ids", ["x"]), ("bad_words", [" "]),
     ("bad_words", [3]), ("truncate_prompt_tokens", 0), ("truncate_prompt_tokens", -2)],
)  # fmt: skip
def test_wrong_values_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=name) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name


@pytest.mark.parametrize("pipeline_depth", [1, 2])
def test_a_pair_of_tokens_is_not_written_and_nothing_else_changes(
    tiny_llama: Path, pipeline_depth: int
) -> None:
    with LLM(tiny_llama, dtype="float32", pipeline_depth=pipeline_depth) as llm:
        free = SamplingParams(temperature=0, max_tokens=12)
        [written] = llm.generate("Once upon a time", free)[0].outputs
        bad = written.token_ids[4:6]
        bound = SamplingParams(temperature=0, max_tokens=12, bad_token_ids=[bad])
        [other] = llm.generate("Once upon a time", bound)[0].outputs
    first = next(n for n, pair in enumerate(itertools.pairwise(written.token_ids)) if pair == bad)
    assert other.token_ids[: first + 1] == written.token_ids[: first + 1]
    assert other.token_ids[first + 1] != written.token_ids[first + 1]
    assert bad not in set(itertools.pairwise(other.token_ids))
