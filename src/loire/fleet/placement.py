"""Which replica computes a request: the one where it costs the least work, in tokens.

The cost of a replica is the new tokens that the request would have to compute there, weighted,
plus the prompt tokens that others still wait for there, plus an allowance for each request it has.
What a replica has cached is known from what was sent there, as chained hashes of whole blocks
(loire.memory.hashing): adapters and salts are in their root, so nobody matches what another may not
read. Requests for an adapter go where it can be had, and rather where its weights are in memory,
which is known from what was sent there, too. Replicas that tell what they stored and evicted
correct that knowledge; so does the first update of a request, if fewer tokens were cached than
expected.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from zlib import crc32

from loire.base.messages import EngineRequest
from loire.memory.hashing import extend_chain, root_hash
from loire.memory.prefix_names import NAME_BYTES

ADAPTER_TOKENS = 500
"""Reading an adapter's weights takes about as long as computing so many tokens."""


@dataclass(frozen=True, slots=True)
class Replica:
    """What placement must know of an engine."""

    name: str
    num_blocks: int
    """Of its KV pool."""
    block_size: int
    """Tokens per block."""
    numbers: str = ""
    """What decides its results to the bit; equal numbers give equal texts."""
    computed_by: str = ""
    """What its blocks' hashes say of their origin: EngineConfig.computed_by."""
    is_sparse: bool = False
    """Whether it keeps states, or windows, so that it can go on at the ends of some blocks only."""


class PrefixChains:
    """The hashes of a request's blocks, as replicas make them: replicas with other blocks, or that
    compute them otherwise, have others. Made when they are asked for."""

    def __init__(self, request: EngineRequest) -> None:
        self._request = request
        self._hashes: dict[tuple[int, str], list[bytes]] = {}
        self._keys: dict[tuple[int, str], list[bytes]] = {}

    @property
    def adapter(self) -> str:
        """Of the request; "" for none."""
        return self._request.adapter

    def hashes(self, replica: Replica) -> Sequence[bytes]:
        """Of the blocks that the request could find in the replica's cache: of all its tokens,
        those it was resumed with included, but the last one, which is always computed."""
        kind = replica.block_size, replica.computed_by
        found = self._hashes.get(kind)
        if found is None:
            request, found = self._request, []
            token_ids = request.prompt_token_ids
            if request.output_token_ids:
                token_ids = (*token_ids, *request.output_token_ids[0])
            root = root_hash(request.cache_salt, request.adapter, replica.computed_by)
            extend_chain(found, root, token_ids[:-1], replica.block_size)
            self._hashes[kind] = found
        return found

    def keys(self, replica: Replica) -> Sequence[bytes]:
        """The first NAME_BYTES of each."""
        kind = replica.block_size, replica.computed_by
        found = self._keys.get(kind)
        if found is None:
            found = self._keys[kind] = [key[:NAME_BYTES] for key in self.hashes(replica)]
        return found


@dataclass(slots=True, eq=False)
class _Placed:
    """A request and what it still costs where it is.

    Attributes:
        num_new: tokens to compute before its first one; 0 once that has come.
        num_matched: leading blocks that were expected in the cache.
        keys: of its blocks, until they are computed.
    """

    replica: "ReplicaState"
    num_new: int
    num_matched: int
    keys: Sequence[bytes]
    adapter: str = ""


@dataclass(slots=True, eq=False)
class ReplicaState:
    """A replica and what is known of it."""

    replica: Replica
    held: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    """Blocks it should have cached, the least recently used first."""
    requests: dict[str, _Placed] = field(default_factory=dict)
    outstanding: int = 0
    """Prompt tokens that its requests wait for."""
    adapters: set[str] = field(default_factory=set)
    """Those that it can serve."""
    resident: OrderedDict[str, None] = field(default_factory=OrderedDict)
    """Those whose weights it should have in memory, the least recently used first."""

    def serves(self, chains: PrefixChains) -> bool:
        """Whether a request may go there, as far as its adapter is concerned."""
        return not chains.adapter or chains.adapter in self.adapters

    def match(self, chains: PrefixChains) -> int:
        """Leading blocks of a request that it should have cached."""
        held, matched = self.held, 0
        if self.replica.is_sparse:
            keys = chains.keys(self.replica)
            return next((end for end in range(len(keys), 0, -1) if keys[end - 1] in held), 0)
        for key in chains.keys(self.replica):
            if key not in held:
                break
            matched += 1
        return matched

    def touch(self, keys: Iterable[bytes]) -> None:
        """Note blocks as used, the last one of them most recently."""
        held = self.held
        for key in keys:
            held[key] = None
            held.move_to_end(key)
        while len(held) > self.replica.num_blocks:
            held.popitem(last=False)

    def forget(self, keys: Iterable[bytes]) -> None:
        """Note blocks as not cached."""
        for key in keys:
            self.held.pop(key, None)

    def forget_oldest(self, num_blocks: int) -> None:
        """Note that the cache is smaller than it seemed."""
        for _ in range(min(num_blocks, len(self.held))):
            self.held.popitem(last=False)


class Placement:
    """Least outstanding work. Pure: no clock, no input or output, the same calls give the same
    choices.

    new_token_weight: of the tokens a request would compute anew, against the work that waits; high
    ones keep prefixes together, low ones level the load. request_tokens: work that each unfinished
    request stands for beyond its prompt.
    """

    def __init__(self, *, new_token_weight: float = 4.0, request_tokens: int = 100) -> None:
        self._weight = new_token_weight
        self._request_tokens = request_tokens
        self._states: dict[str, ReplicaState] = {}
        self._placed: dict[str, _Placed] = {}

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """Those that requests may go to."""
        return tuple(state.replica for state in self._states.values())

    def outstanding(self, name: str) -> int:
        """Prompt tokens that a replica's requests wait for."""
        return self._states[name].outstanding

    def requests(self, name: str) -> tuple[str, ...]:
        """Unfinished requests of a replica."""
        return tuple(self._states[name].requests)

    def matched_tokens(self, name: str, chains: PrefixChains) -> int:
        """Leading tokens of a request that a replica should have cached."""
        state = self._states[name]
        return state.match(chains) * state.replica.block_size

    def join(self, replica: Replica) -> None:
        """From now on requests may go there. Raises ValueError if there is one of that name."""
        if replica.name in self._states:
            raise ValueError(f"replica {replica.name!r} is there already")
        self._states[replica.name] = ReplicaState(replica)

    def leave(self, name: str) -> tuple[str, ...]:
        """Forget a replica; the requests that were there, in order of arrival. Unknown names have
        none."""
        state = self._states.pop(name, None)
        if state is None:
            return ()
        for request_id in state.requests:
            del self._placed[request_id]
        return tuple(state.requests)

    def adapter_usable(self, name: str, adapter: str) -> None:
        """A replica can serve an adapter from now on; of unknown replicas nothing is kept."""
        state = self._states.get(name)
        if state is not None:
            state.adapters.add(adapter)

    def adapters_in_memory(self, name: str, num_adapters: int) -> None:
        """A replica tells of how many adapters it has the weights in memory."""
        state = self._states.get(name)
        if state is None or len(state.resident) <= num_adapters:
            return
        used = {placed.adapter for placed in state.requests.values()}
        idle = [adapter for adapter in state.resident if adapter not in used]
        for adapter in idle[: len(state.resident) - num_adapters]:
            del state.resident[adapter]

    def place(
        self,
        request_id: str,
        chains: PrefixChains,
        num_tokens: int,
        *,
        numbers: str = "",
        avoid: Collection[str] = (),
    ) -> str | None:
        """Choose a replica for a request and count it there; None if there is none, or none that
        can serve its adapter.

        num_tokens: all it has to compute before the next token. numbers: of the replica that began
        it, if one did; others are taken only if there is none of these. avoid: replicas to take
        only if there is no other. Raises ValueError if the request is placed already.
        """
        if request_id in self._placed:
            raise ValueError(f"request {request_id!r} is placed already")
        candidates = self._candidates(chains, numbers, avoid)
        if not candidates:
            return None
        name = self.choose(request_id, candidates, chains, num_tokens)
        state = candidates[name]
        matched, keys = state.match(chains), chains.keys(state.replica)
        num_new = max(num_tokens - matched * state.replica.block_size, 1)
        placed = _Placed(state, num_new, matched, keys, chains.adapter)
        self._placed[request_id] = state.requests[request_id] = placed
        state.outstanding += num_new
        if chains.adapter:
            state.resident[chains.adapter] = None
            state.resident.move_to_end(chains.adapter)
        # Tails are evicted before what they continue.
        state.touch(reversed(keys))
        return name

    def first_token(self, request_id: str, num_cached: int) -> None:
        """Its prompt is computed; num_cached tokens of that were in the cache."""
        placed = self._placed.get(request_id)
        if placed is None or placed.num_new == 0:
            return
        state = placed.replica
        state.outstanding -= placed.num_new
        placed.num_new = 0
        placed.keys = ()
        num_found = num_cached // state.replica.block_size
        # What was missing is there again now; but others of its age are gone as well.
        state.forget_oldest(max(placed.num_matched - num_found, 0))

    def end(self, request_id: str) -> None:
        """It has ended, or will never run. Unknown ones are none."""
        placed = self._placed.pop(request_id, None)
        if placed is not None:
            placed.replica.outstanding -= placed.num_new
            placed.replica.forget(placed.keys[placed.num_matched :])
            del placed.replica.requests[request_id]

    def changed(self, name: str, stored: Iterable[bytes], evicted: Iterable[bytes]) -> None:
        """A replica tells what it can find from now on, and what no more; of unknown ones nothing
        is kept."""
        state = self._states.get(name)
        if state is None:
            return
        state.forget(key[:NAME_BYTES] for key in evicted)
        state.touch(key[:NAME_BYTES] for key in stored)

    def _candidates(
        self, chains: PrefixChains, numbers: str, avoid: Collection[str]
    ) -> dict[str, ReplicaState]:
        usable = {name: state for name, state in self._states.items() if state.serves(chains)}
        wanted = {name: state for name, state in usable.items() if name not in avoid} or usable
        if not numbers:
            return wanted
        return {n: s for n, s in wanted.items() if s.replica.numbers == numbers} or wanted

    def choose(
        self,
        request_id: str,
        candidates: Mapping[str, ReplicaState],
        chains: PrefixChains,
        num_tokens: int,
    ) -> str:
        """The name of the replica to take: what other kinds of placement do differently."""

        def options() -> Iterator[tuple[float, int, str]]:
            for name, state in candidates.items():
                num_new = max(num_tokens - state.match(chains) * state.replica.block_size, 1)
                if chains.adapter and chains.adapter not in state.resident:
                    num_new += ADAPTER_TOKENS
                waiting = state.outstanding + self._request_tokens * len(state.requests)
                # Equal costs are decided by content, so that empty replicas fill evenly and fronts
                # that know nothing of each other choose alike.
                tie = next(iter(chains.keys(state.replica)), request_id.encode())
                yield self._weight * num_new + waiting, crc32(tie + name.encode()), name

        return min(options())[2]


def num_tokens_to_compute(request: EngineRequest) -> int:
    """Tokens before the next one it gives, over all choices, if nothing is cached."""
    num_outputs = sum(map(len, request.output_token_ids))
    return len(request.prompt_token_ids) + num_outputs
