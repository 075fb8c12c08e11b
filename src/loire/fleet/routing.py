"""Other ways to choose a replica, to compare placement with: `loire simulate` has them all.

Each keeps the books as Placement does and differs in the choice alone.
"""

import random
from collections.abc import Callable, Mapping

from loire.base.errors import ConfigError
from loire.fleet.placement import Placement, PrefixChains, ReplicaState

_States = Mapping[str, ReplicaState]


class RandomChoice(Placement):
    """Any replica."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._random = random.Random(seed)

    def choose(
        self, request_id: str, candidates: _States, chains: PrefixChains, num_tokens: int
    ) -> str:
        """See Placement."""
        return self._random.choice(list(candidates))


class RoundRobin(Placement):
    """One after the other."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._turn = seed

    def choose(
        self, request_id: str, candidates: _States, chains: PrefixChains, num_tokens: int
    ) -> str:
        """See Placement."""
        self._turn += 1
        return sorted(candidates)[self._turn % len(candidates)]


class FewestRequests(RandomChoice):
    """The replica with the fewest unfinished requests."""

    def choose(
        self, request_id: str, candidates: _States, chains: PrefixChains, num_tokens: int
    ) -> str:
        """See Placement."""
        fewest = min(len(state.requests) for state in candidates.values())
        ties = [name for name, state in candidates.items() if len(state.requests) == fewest]
        return self._random.choice(ties)


class TwoChoices(RandomChoice):
    """Of two random replicas the one with fewer requests (Mitzenmacher 2001), as Ray Serve does."""

    def choose(
        self, request_id: str, candidates: _States, chains: PrefixChains, num_tokens: int
    ) -> str:
        """See Placement."""
        two = self._random.sample(list(candidates), min(2, len(candidates)))
        return min(two, key=lambda name: len(candidates[name].requests))


class LongestMatch(RandomChoice):
    """The replica with the longest cached prefix, whatever else it has to do."""

    def choose(
        self, request_id: str, candidates: _States, chains: PrefixChains, num_tokens: int
    ) -> str:
        """See Placement."""
        matches = {name: state.match(chains) for name, state in candidates.items()}
        longest = max(matches.values())
        return self._random.choice([name for name in matches if matches[name] == longest])


class PrefixAffinity(LongestMatch):
    """The longest match if it covers a tenth of the tokens, else whoever holds least: the rule of
    Ray Serve's PrefixCacheAffinityRouter with its defaults, over blocks instead of characters."""

    def choose(
        self, request_id: str, candidates: _States, chains: PrefixChains, num_tokens: int
    ) -> str:
        """See Placement."""
        best = max(s.match(chains) * s.replica.block_size for s in candidates.values())
        if best >= 0.1 * num_tokens:
            return super().choose(request_id, candidates, chains, num_tokens)
        least = min(len(state.held) for state in candidates.values())
        return self._random.choice([n for n, s in candidates.items() if len(s.held) == least])


ROUTINGS: dict[str, Callable[[int], Placement]] = {
    "work": lambda seed: Placement(),
    "random": RandomChoice,
    "round-robin": RoundRobin,
    "requests": FewestRequests,
    "two-choices": TwoChoices,
    "longest": LongestMatch,
    "affinity": PrefixAffinity,
}
"""Name -> a new placement of that kind, from a seed."""


def make_routing(name: str, seed: int = 0) -> Placement:
    """A placement by name. Raises ConfigError for unknown ones."""
    if name not in ROUTINGS:
        raise ConfigError(f"there is no routing {name!r}; there are {', '.join(ROUTINGS)}")
    return ROUTINGS[name](seed)
