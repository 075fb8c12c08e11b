"""Bits are spent where they save most, and never more than there are."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from loire.base.errors import ConfigError
from loire.quantize.allocation import Candidate, FormatCost, allocate

BITS = (2.25, 3.25, 4.25, 5.5, 8.5)


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    found = []
    for index in range(draw(st.integers(1, 6))):
        error, choices = draw(st.floats(1e-6, 1.0)), []
        for bits in BITS[draw(st.integers(0, 2)) :]:
            choices.append(FormatCost(f"{bits}", bits, error))
            error *= draw(st.floats(0.01, 0.9))
        found.append(Candidate(f"w{index}", draw(st.integers(1, 10**6)), choices))
    return found


@settings(deadline=None)
@given(given_candidates=candidates(), bits=st.floats(4.25, 9.0))
def test_the_average_holds_and_nothing_affordable_is_left(
    given_candidates: list[Candidate], bits: float
) -> None:
    chosen = allocate(given_candidates, bits)
    total = sum(c.num_elements for c in given_candidates)
    spent = sum(chosen[c.name].bits * c.num_elements for c in given_candidates)
    assert spent <= bits * total * (1 + 1e-12)
    for candidate in given_candidates:
        now = chosen[candidate.name]
        for choice in candidate.choices:
            if choice.bits > now.bits:
                extra = (choice.bits - now.bits) * candidate.num_elements
                assert spent + extra > bits * total * (1 - 1e-12)


def test_what_is_sensitive_gets_more() -> None:
    def weight(name: str, harm: float) -> Candidate:
        return Candidate(name, 1000, [FormatCost(f"{b}", b, harm * 4.0**-b) for b in BITS])

    chosen = allocate([weight("calm", 1.0), weight("sensitive", 1000.0)], 4.0)
    assert chosen["sensitive"].bits > chosen["calm"].bits


def test_too_few_bits_are_refused_with_the_least() -> None:
    candidate = Candidate("w", 100, [FormatCost("Q5_0", 5.5, 0.1)])
    with pytest.raises(ConfigError, match=r"at least 5\.50"):
        allocate([candidate], 3.5)
