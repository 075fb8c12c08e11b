"""How many bits each weight gets, so that an average holds and the error is least."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loire.base.errors import ConfigError


@dataclass(frozen=True, slots=True)
class FormatCost:
    """A format that a weight could have."""

    name: str
    bits: float
    """Per weight."""
    error: float
    """What is lost by it, in the unit of all weights."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A weight, or several that must have one format."""

    name: str
    num_elements: int
    choices: Sequence[FormatCost]
    """With ascending bits."""


def allocate(candidates: Sequence[Candidate], bits: float) -> Mapping[str, FormatCost]:
    """A choice for each, of an average of at most `bits` per weight, by a Lagrange multiplier: what
    a bit more saves is about the same everywhere; what is left over is spent where it saves most.

    Raises ConfigError if even the fewest bits are more.
    """
    total = sum(candidate.num_elements for candidate in candidates)
    budget = bits * total

    def cost(chosen: Mapping[str, FormatCost]) -> float:
        return sum(chosen[c.name].bits * c.num_elements for c in candidates)

    chosen = {c.name: c.choices[0] for c in candidates}
    if cost(chosen) > budget:
        raise ConfigError(
            f"{bits} bits per weight are too few: this model's rows take at least "
            f"{cost(chosen) / total:.2f}"
        )
    low, high = 0.0, 1e30
    for _ in range(200):
        price = (low * high) ** 0.5 if low > 0 else high / 1e6
        trial = {c.name: _cheapest(c, price) for c in candidates}
        if cost(trial) > budget:
            low = price
        else:
            chosen, high = trial, price
    return _spend_the_rest(candidates, chosen, budget - cost(chosen))


def _cheapest(candidate: Candidate, price: float) -> FormatCost:
    """price: of a bit, in units of error."""
    return min(
        candidate.choices,
        key=lambda choice: choice.error + price * choice.bits * candidate.num_elements,
    )


def _spend_the_rest(
    candidates: Sequence[Candidate], chosen: Mapping[str, FormatCost], left: float
) -> Mapping[str, FormatCost]:
    spent = dict(chosen)
    while True:
        best: tuple[float, Candidate, FormatCost] | None = None
        for candidate in candidates:
            now = spent[candidate.name]
            for choice in candidate.choices:
                extra = (choice.bits - now.bits) * candidate.num_elements
                saved = now.error - choice.error
                if 0 < extra <= left and saved > 0 and (best is None or saved / extra > best[0]):
                    best = saved / extra, candidate, choice
        if best is None:
            return spent
        _, candidate, choice = best
        left -= (choice.bits - spent[candidate.name].bits) * candidate.num_elements
        spent[candidate.name] = choice
