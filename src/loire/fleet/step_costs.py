"""How long a step takes, as a sum of what it computes and reads; fitted from recorded steps.

A step of rows that compute n tokens from position s on costs

    base_s                                   reading the weights, launching, scheduling
    + token_s   * sum of n                   products with the weights
    + context_s * sum of (s + n)             reading keys and values
    + pair_s    * sum of n * (s + (n + 1)/2) attention, per query and key
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import combinations
from pathlib import Path

from loire.base.errors import ConfigError
from loire.base.step import StepPlan, StepRecord

MIN_STEPS = 20
"""Fewer recorded steps are no ground for a fit."""
TRIMMED = 0.05
"""Share of the steps that fit worst, and are left out: the machine did something else as well."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a step, or several, had to do."""

    tokens: int = 0
    context: int = 0
    pairs: float = 0.0

    def plus(self, num_tokens: int, start: int) -> "Work":
        """With one more row: num_tokens tokens from position start on."""
        end = start + num_tokens
        pairs = num_tokens * (start + (num_tokens + 1) / 2)
        return Work(self.tokens + num_tokens, self.context + end, self.pairs + pairs)

    @staticmethod
    def of(plan: StepPlan) -> "Work":
        """Of a step that was planned."""
        tokens = context = 0
        pairs = 0.0
        for row in plan.rows:
            num_tokens = len(row.token_ids)
            tokens += num_tokens
            context += row.start + num_tokens
            pairs += num_tokens * (row.start + (num_tokens + 1) / 2)
        return Work(tokens, context, pairs)


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Seconds of a step on some machine; see the formula above. source: where they come from."""

    base_s: float
    token_s: float
    context_s: float
    pair_s: float
    source: str = ""

    def step_s(self, work: Work) -> float:
        """Seconds of a step."""
        return (
            self.base_s
            + self.token_s * work.tokens
            + self.context_s * work.context
            + self.pair_s * work.pairs
        )

    def decode_s(self, num_steps: int, num_rows: int, context: int) -> float:
        """Seconds of successive steps that compute a token of each row; context: tokens that the
        rows have in the first of them, those included."""
        grown = num_steps * context + num_rows * num_steps * (num_steps - 1) / 2
        each = self.base_s + self.token_s * num_rows
        return num_steps * each + (self.context_s + self.pair_s) * grown

    def save(self, path: Path) -> None:
        """Write them as JSON. Raises ConfigError if that cannot be done."""
        try:
            path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from error

    @staticmethod
    def read(path: Path) -> "StepCosts":
        """Read what save() wrote. Raises ConfigError naming what is wrong."""
        names = {field.name for field in fields(StepCosts)}
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(given, dict) or set(given) != names:
                raise ValueError(f"it must be an object of {', '.join(sorted(names))}")
            numbers = {name: float(given[name]) for name in names - {"source"}}
            if not all(0 <= value < 1e6 for value in numbers.values()) or not numbers["base_s"]:
                raise ValueError("costs are seconds, at least 0, and base_s above 0")
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{path} holds no costs of steps: {error}") from error
        return StepCosts(**numbers, source=str(given["source"]))


ACCELERATOR = StepCosts(
    6e-3, 60e-6, 40e-9, 0.0, "a guess for a model of 8B parameters on one fast accelerator"
)
"""For a first look at a fleet that nobody has yet; measure with `loire bench --cost`."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Costs, and how well they tell the steps that they come from."""

    costs: StepCosts
    num_steps: int
    typical_error: float
    """Median over all steps of |told - took| / took."""


def recorded_work(records: Iterable[StepRecord]) -> list[tuple[Work, float]]:
    """(work, seconds) of each step. Positions are not recorded: they are counted from the tokens
    that each sequence computed, so the records must begin with its first step.

    Tokens found in the cache are shared evenly by the sequences that entered in their step. After
    a preemption positions are uncertain; nothing later is used.
    """
    positions: dict[int, int] = {}
    steps = []
    for record in records:
        if record.num_preemptions:
            break
        entered = [slot.seq_id for slot in record.slots if slot.seq_id not in positions]
        for seq_id in entered:
            positions[seq_id] = record.num_prefix_hit_tokens // len(entered)
        work = Work()
        for slot in record.slots:
            num_tokens = slot.num_prefill_tokens + slot.num_decode_tokens
            if num_tokens:
                work = work.plus(num_tokens, positions[slot.seq_id])
                positions[slot.seq_id] += num_tokens
        if work.tokens:
            steps.append((work, record.compute_s))
    return steps


def fit(steps: Sequence[tuple[Work, float]], *, overhead_s: float = 0.0, source: str = "") -> Fit:
    """The costs, none below 0, with the least squares of relative errors.

    overhead_s: of a step outside what was recorded, added to base_s. Raises ConfigError for too few
    steps, or such that are all alike.
    """
    steps = [(work, seconds) for work, seconds in steps if seconds > 0]
    if len(steps) < MIN_STEPS:
        raise ConfigError(f"{len(steps)} recorded steps are too few: {MIN_STEPS} are needed")
    kept = steps
    for _ in range(2):
        numbers = _least_squares(kept)
        costs = StepCosts(*numbers, source=source)
        ordered = sorted(steps, key=lambda step: _error(costs, step))
        kept = ordered[: max(int(len(steps) * (1 - TRIMMED)), MIN_STEPS)]
    errors = [_error(costs, step) for step in ordered]
    return Fit(
        replace(costs, base_s=costs.base_s + overhead_s), len(steps), errors[len(errors) // 2]
    )


def _error(costs: StepCosts, step: tuple[Work, float]) -> float:
    work, seconds = step
    return abs(costs.step_s(work) - seconds) / seconds


def _least_squares(steps: Sequence[tuple[Work, float]]) -> tuple[float, float, float, float]:
    """Non-negative: the best of the solutions over all subsets of the four terms."""
    import numpy as np

    terms = np.array([(1.0, work.tokens, work.context, work.pairs) for work, _ in steps])
    weights = 1 / np.array([seconds for _, seconds in steps])
    scales = np.abs(terms).max(axis=0).clip(1.0)
    scaled = terms / scales * weights[:, None]
    best: tuple[float, tuple[float, ...]] | None = None
    for size in range(1, 5):
        for chosen in combinations(range(4), size):
            if 0 not in chosen:
                continue  # a step that does nothing takes time, too
            part = scaled[:, chosen]
            found, _, rank, _ = np.linalg.lstsq(part, np.ones(len(steps)), rcond=None)
            if rank < size or (found < 0).any() or found[0] <= 0:
                continue
            loss = float(((part @ found - 1) ** 2).sum())
            if best is None or loss < best[0] - 1e-12:
                full = [0.0] * 4
                for index, value in zip(chosen, found, strict=True):
                    full[index] = float(value / scales[index])
                best = loss, tuple(full)
    if best is None:
        raise ConfigError("the recorded steps do not tell what a step costs")
    base, token, context, pair = best[1]
    return base, token, context, pair
