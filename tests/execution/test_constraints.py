"""Constraints in the batch: masks follow the tokens, resume from them, and fail closed."""

from pathlib import Path

import pytest
import torch

from loire.base.structured_outputs import StructuredOutputs
from loire.checkpoint.open import open_checkpoint
from loire.execution.constraints import ConstraintError, ConstraintFactory
from loire.text.tokenizer import Tokenizer, checkpoint_tokenizer

PADDED = 300
"""Columns of the logits: more than the tokenizer has tokens."""


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> Tokenizer:
    return checkpoint_tokenizer(open_checkpoint(tiny_llama))


@pytest.fixture
def factory(tokenizer: Tokenizer) -> ConstraintFactory:
    return ConstraintFactory(lambda: tokenizer, PADDED)


def _allowed(forbidden: torch.Tensor, tokenizer: Tokenizer) -> set[str]:
    return {tokenizer.token_text(i) for i in torch.nonzero(~forbidden).flatten().tolist()}


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def test_mask_follows_the_tokens_to_the_end(
    tokenizer: Tokenizer, factory: ConstraintFactory
) -> None:
    constraint = factory.constraint(StructuredOutputs(choice=("ab", "cd")), ())
    assert constraint.forbidden().shape == (PADDED,)
    assert _allowed(constraint.forbidden(), tokenizer) == {"a", "c"}
    constraint.record(_ids(tokenizer, "c")[0])
    assert _allowed(constraint.forbidden(), tokenizer) == {"d"}
    constraint.record(_ids(tokenizer, "d")[0])
    ends = torch.nonzero(~constraint.forbidden()).flatten().tolist()
    assert ends == sorted(tokenizer.eos_token_ids)
    constraint.record(ends[0])  # a row that ran ahead by a step asks once more
    assert torch.nonzero(~constraint.forbidden()).flatten().tolist() == ends


def test_resumed_is_uninterrupted(tokenizer: Tokenizer, factory: ConstraintFactory) -> None:
    spec = StructuredOutputs(json_object=True)
    ids = _ids(tokenizer, '{"key": [1, 2')
    whole = factory.constraint(spec, ())
    for token_id in ids:
        whole.record(token_id)
    resumed = factory.constraint(spec, ids)
    assert torch.equal(whole.forbidden(), resumed.forbidden())


def test_a_constraint_that_was_left_ends_its_sequence_alone(
    tokenizer: Tokenizer, factory: ConstraintFactory
) -> None:
    spec = StructuredOutputs(choice=("ab", "cd"))
    broken, neighbour = factory.constraint(spec, ()), factory.constraint(spec, ())
    broken.record(_ids(tokenizer, "x")[0])
    with pytest.raises(ConstraintError, match="cannot go on"):
        broken.forbidden()
    broken.record(_ids(tokenizer, "a")[0])
    with pytest.raises(ConstraintError):
        broken.forbidden()
    assert _allowed(neighbour.forbidden(), tokenizer) == {"a", "c"}
