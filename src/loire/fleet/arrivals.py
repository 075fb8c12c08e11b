"""What comes to a simulated fleet: requests of a trace, or sessions of agents.

Nobody knows what a trace's requests said. A prompt is therefore runs of equal tokens, which hash
like any others: equal runs at equal places are equal prefixes.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loire.base.errors import ConfigError
from loire.workloads.traces import MOONCAKE_BLOCK, TraceEntry

OUTPUT_TOKEN = 1
"""What simulated replicas generate, whatever they are asked."""
_FIRST_TOKEN = 2

Runs = tuple[tuple[int, int], ...]
"""(token id, how often), one after the other."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request: when it comes, what it says, and what follows its answer.

    wait_s: after the start or, of a turn, after the answer to the turn before.
    """

    wait_s: float
    runs: Runs
    num_output: int
    then: "Arrival | None" = None

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return sum(count for _, count in self.runs)

    def token_ids(self) -> tuple[int, ...]:
        """Of the prompt."""
        token_ids: list[int] = []
        for token, count in self.runs:
            token_ids += [token] * count
        return tuple(token_ids)

    def turns(self) -> Iterator["Arrival"]:
        """It and what follows."""
        turn: Arrival | None = self
        while turn is not None:
            yield turn
            turn = turn.then


def trace_arrivals(entries: Sequence[TraceEntry], *, speed: float = 1.0) -> list[Arrival]:
    """The requests of a trace, at its times divided by speed. Where it names blocks, equal names
    are equal blocks; else no two requests share anything."""
    num_names = 1 + max((max(e.hash_ids, default=-1) for e in entries), default=-1)
    arrivals = []
    for index, entry in enumerate(entries):
        own = _FIRST_TOKEN + num_names + index
        length, runs = max(entry.num_prompt, 1), []
        for name in entry.hash_ids:
            count = min(MOONCAKE_BLOCK, length)
            if count:
                runs.append((_FIRST_TOKEN + name, count))
            length -= count
        if length:
            runs.append((own, length))
        arrivals.append(Arrival(entry.arrival_s / speed, tuple(runs), max(entry.num_output, 1)))
    return arrivals


@dataclass(frozen=True, slots=True, kw_only=True)
class Agents:
    """Sessions of agents: a long system prompt that many share, then turns; each turn's prompt is
    all before it, the answer to that, and what a tool gave. Means of lengths in tokens."""

    sessions: int = 100
    turns: int = 12
    system_prompts: int = 4
    system_tokens: int = 4000
    first_tokens: int = 500
    tool_tokens: int = 800
    output_tokens: int = 150
    tool_s: float = 2.0
    """Mean time from an answer to the next turn."""
    sessions_per_s: float = 0.5


def agent_arrivals(agents: Agents, *, speed: float = 1.0, seed: int = 0) -> list[Arrival]:
    """The first turns of sessions that begin as a Poisson process; lengths are exponential."""
    if min(agents.sessions, agents.turns, agents.system_prompts) < 1:
        raise ConfigError("agents need at least one session, one turn and one system prompt")
    rng = random.Random(seed)
    arrivals, time_s = [], 0.0
    next_token = _FIRST_TOKEN + agents.system_prompts
    for _ in range(agents.sessions):
        system = _FIRST_TOKEN + rng.randrange(agents.system_prompts)
        said: list[tuple[int, int]] = [(system, agents.system_tokens)]
        turns: list[Arrival] = []
        for turn in range(1 + round(rng.expovariate(1 / max(agents.turns - 1, 1e-9)))):
            mean = agents.tool_tokens if turn else agents.first_tokens
            said.append((next_token, 1 + round(rng.expovariate(1 / mean))))
            next_token += 1
            num_output = 1 + round(rng.expovariate(1 / agents.output_tokens))
            wait_s = rng.expovariate(1 / agents.tool_s) if turn else time_s / speed
            turns.append(Arrival(wait_s, tuple(said), num_output))
            said.append((OUTPUT_TOKEN, num_output))
        arrivals.append(_linked(turns))
        time_s += rng.expovariate(agents.sessions_per_s)
    return arrivals


def _linked(turns: Sequence[Arrival]) -> Arrival:
    following: Arrival | None = None
    for turn in reversed(turns):
        following = Arrival(turn.wait_s, turn.runs, turn.num_output, following)
    assert following is not None
    return following
