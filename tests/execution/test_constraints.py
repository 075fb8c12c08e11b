"""Constraints in the batch: masks follow the tokens, resume from them, and fail closed."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from loire.base.structured_outputs import StructuredOutputs
from loire.checkpoint.open import open_checkpoint
from loire.execution.constraints import ConstraintFactory, SequenceConstraint
from loire.text.tokenizer import Tokenizer, checkpoint_tokenizer

PADDED = 300
"""Columns of the logits: more than the tokenizer has tokens."""


def masks_of(constraints: dict[int, SequenceConstraint | None]) -> dict[int, torch.Tensor | str]:
    """Of each row with a constraint, bool [V] of what may not come next, or what is wrong."""
    found: dict[int, torch.Tensor | str] = {}
    for row, constraint in constraints.items():
        if constraint is None:
            continue
        bits = constraint.allowed()
        if isinstance(bits, str):
            found[row] = bits
            continue
        allowed = np.unpackbits(bits.view(np.uint8), bitorder="little").astype(np.bool_)
        mask = torch.ones(constraint.num_columns, dtype=torch.bool)
        known = min(len(mask), len(allowed))
        mask[:known] = torch.from_numpy(~allowed[:known])
        found[row] = mask
    return found


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> Tokenizer:
    return checkpoint_tokenizer(open_checkpoint(tiny_llama))


@pytest.fixture
def factory(tokenizer: Tokenizer) -> ConstraintFactory:
    return ConstraintFactory(lambda: tokenizer, PADDED)


def _forbidden(constraint: SequenceConstraint) -> torch.Tensor:
    [mask] = masks_of({7: constraint}).values()
    assert isinstance(mask, torch.Tensor), mask
    return mask


def _allowed(constraint: SequenceConstraint, tokenizer: Tokenizer) -> set[str]:
    forbidden = _forbidden(constraint)
    return {tokenizer.token_text(i) for i in torch.nonzero(~forbidden).flatten().tolist()}


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def test_mask_follows_the_tokens_to_the_end(
    tokenizer: Tokenizer, factory: ConstraintFactory
) -> None:
    constraint = factory.constraint(StructuredOutputs(choice=("ab", "cd")), ())
    assert _forbidden(constraint).shape == (PADDED,)
    assert _allowed(constraint, tokenizer) == {"a", "c"}
    constraint.record(_ids(tokenizer, "c")[0])
    assert _allowed(constraint, tokenizer) == {"d"}
    constraint.record(_ids(tokenizer, "d")[0])
    ends = torch.nonzero(~_forbidden(constraint)).flatten().tolist()
    assert ends == sorted(tokenizer.eos_token_ids)
    constraint.record(ends[0])  # a row that ran ahead by a step asks once more
    assert torch.nonzero(~_forbidden(constraint)).flatten().tolist() == ends


def test_resumed_is_uninterrupted(tokenizer: Tokenizer, factory: ConstraintFactory) -> None:
    spec = StructuredOutputs(json_object=True)
    ids = _ids(tokenizer, '{"key": [1, 2')
    whole = factory.constraint(spec, ())
    for token_id in ids:
        whole.record(token_id)
    resumed = factory.constraint(spec, ids)
    assert torch.equal(_forbidden(whole), _forbidden(resumed))


def test_a_constraint_that_was_left_ends_its_sequence_alone(
    tokenizer: Tokenizer, factory: ConstraintFactory
) -> None:
    spec = StructuredOutputs(choice=("ab", "cd"))
    broken, neighbour = factory.constraint(spec, ()), factory.constraint(spec, ())
    for token in ("x", "a"):
        broken.record(_ids(tokenizer, token)[0])
        factory.advance()
        masks = masks_of({0: broken, 1: None, 2: neighbour})
        assert "cannot go on" in str(masks[0])
        assert set(masks) == {0, 2}
    assert _allowed(neighbour, tokenizer) == {"a", "c"}


def test_many_rows_are_filled_together_as_each_alone(
    tokenizer: Tokenizer, factory: ConstraintFactory
) -> None:
    spec = StructuredOutputs(json_object=True)
    text = '{"key": [1, {"a": "b'
    ids = [_ids(tokenizer, text[:length]) for length in range(1, len(text) + 1)]
    rows = {row: factory.constraint(spec, tokens[:-1]) for row, tokens in enumerate(ids)}
    for row, constraint in rows.items():
        constraint.record(ids[row][-1])
    factory.advance()
    together = masks_of(rows)
    for row, tokens in enumerate(ids):
        alone = _forbidden(factory.constraint(spec, tokens))
        mask = together[row]
        assert isinstance(mask, torch.Tensor)
        assert torch.equal(mask, alone), text[: row + 1]


def test_bits_are_spread_alike_on_any_device(factory: ConstraintFactory) -> None:
    constraint = factory.constraint(StructuredOutputs(json_object=True), ())
    bits = constraint.allowed()
    assert isinstance(bits, np.ndarray)
    known = len(bits) * 32
    expected = [i >= known or bits[i // 32] >> (i % 32) & 1 == 0 for i in range(PADDED)]
    assert _forbidden(constraint).tolist() == expected


def test_a_model_with_fewer_tokens_than_its_tokenizer(tokenizer: Tokenizer) -> None:
    few = ConstraintFactory(lambda: tokenizer, _ids(tokenizer, "b")[0])
    constraint = few.constraint(StructuredOutputs(choice=("a", "b")), ())
    assert _allowed(constraint, tokenizer) == {"a"}
    nothing = few.constraint(StructuredOutputs(choice=("b",)), ())
    [problem] = masks_of({0: nothing}).values()
    assert "no token may come next" in str(problem)


def test_what_is_not_ready_delays_nobody(
    tokenizer: Tokenizer, factory: ConstraintFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, compiler = threading.Event(), factory._compiler
    slow, quick = StructuredOutputs(choice=("slow",)), StructuredOutputs(choice=("quick",))
    compile_one = compiler.matcher

    def compile_slowly(spec: StructuredOutputs) -> object:
        if spec == slow:
            assert go.wait(60)
        return compile_one(spec)

    monkeypatch.setattr(compiler, "matcher", compile_slowly)
    assert not factory.ready(slow)
    waiting, other = factory.constraint(slow, ()), factory.constraint(quick, ())
    assert _allowed(other, tokenizer) == {"q"}
    other.record(_ids(tokenizer, "q")[0])
    assert _allowed(other, tokenizer) == {"u"}
    assert factory.ready(quick)
    assert not factory.ready(slow)
    go.set()
    assert _allowed(waiting, tokenizer) == {"s"}
    assert factory.ready(slow)


def test_one_that_cannot_be_compiled_is_ready_and_ends(factory: ConstraintFactory) -> None:
    wrong = StructuredOutputs(regex="(")
    constraint = factory.constraint(wrong, ())
    [problem] = masks_of({0: constraint}).values()
    assert "structured_outputs.regex" in str(problem)
    assert factory.ready(wrong)


def test_the_vocabulary_can_be_read_in_ahead(factory: ConstraintFactory) -> None:
    factory.prepare()
    factory._compiling.shutdown(wait=True)
    assert "_library" in vars(factory._compiler)


def test_a_defect_is_logged_and_ends_its_sequences(
    tokenizer: Tokenizer,
    factory: ConstraintFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    constraint = factory.constraint(StructuredOutputs(choice=("ab",)), ())
    assert not isinstance(constraint.allowed(), str)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(factory, "fill", fail)
    constraint.record(_ids(tokenizer, "a")[0])
    assert "cannot go on: ZeroDivisionError" in str(constraint.allowed())
    [record] = caplog.records
    assert record.exc_info is not None
    # What its text is to blame for is no defect.
    wrong = factory.constraint(StructuredOutputs(regex="("), ())
    assert "cannot go on" in str(wrong.allowed())
    assert len(caplog.records) == 1
