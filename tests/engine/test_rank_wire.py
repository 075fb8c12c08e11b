"""Steps as messages to ranks: they come out as they went in, or not at all."""

from dataclasses import fields, replace

import msgspec
import numpy as np
import pytest

from loire.engine.rank_wire import Compute, compute_message, read_to_rank, step_inputs
from loire.engine.wire import WireError, frame
from loire.execution.forward import StepInputs
from loire.execution.inputs import batch_of

TABLES = [np.array([[3, 4], [9, 0]], dtype=np.int32), np.array([[7], [8]], dtype=np.int32)]
SIZES = (4, 0)


def inputs() -> StepInputs:
    """A prefill and a decode, in two cache groups, one of states."""
    host = batch_of(np.array([5, 6, 7, 8]), (2, 3), (3, 1), TABLES[0], SIZES[0])
    host = replace(host, adapters=np.array([1, 1, 1, -1], dtype=np.int32))
    return StepInputs(host, TABLES, (1, 1), ((1, 2),), (7,), ((3, 5),))


def test_a_step_crosses() -> None:
    given = inputs()
    message = read_to_rank(frame(compute_message(given))[4:])
    assert isinstance(message, Compute)
    found = step_inputs(message, SIZES)
    for name in ("wanted", "copies", "zeroed", "snapshots"):
        assert getattr(found, name) == getattr(given, name)
    for field in fields(given.batch):
        there, here = getattr(found.batch, field.name), getattr(given.batch, field.name)
        assert np.array_equal(there, here), field.name
    assert all(np.array_equal(a, b) for a, b in zip(found.tables, TABLES, strict=True))


@pytest.mark.parametrize(
    "damage",
    [
        {"token_ids": b"123"},
        {"token_ids": b"12345678"},
        {"starts": (1,)},
        {"tables": (b"1234" * 3, b"1234" * 2)},
        {"tables": (b"1234" * 2,)},
        {"adapters": b"1234"},
    ],
)
def test_what_does_not_fit_is_refused(damage: dict[str, object]) -> None:
    message = msgspec.structs.replace(compute_message(inputs()), **damage)
    with pytest.raises(WireError, match="a step"):
        step_inputs(message, SIZES)
    with pytest.raises(WireError):
        read_to_rank(frame(message)[4:-1])
