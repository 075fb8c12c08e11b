"""What no number of replicas can find more of: the bound of hits."""

from loire.base.messages import EngineRequest
from loire.fleet.arrivals import OUTPUT_TOKEN
from loire.fleet.placement import PrefixChains, Replica
from loire.fleet.simulated_replica import ReplicaOptions
from loire.memory.hashing import extend_chain, root_hash
from loire.memory.prefix_names import NAME_BYTES


class OneBigCache:
    """What a single cache would find that never forgets, and has what comes at once."""

    def __init__(self, options: ReplicaOptions) -> None:
        self.num_hit_tokens = 0
        self._replica = Replica("one", options.num_blocks, options.block_size)
        self._seen: set[bytes] = set()

    def take(self, message: EngineRequest, chains: PrefixChains, num_output: int) -> None:
        """Another request, with the chains of its prompt; the last token it gives is not cached."""
        keys, size = chains.keys(self._replica), self._replica.block_size
        matched = next((i for i, key in enumerate(keys) if key not in self._seen), len(keys))
        self.num_hit_tokens += matched * size
        known = (*message.prompt_token_ids, *(OUTPUT_TOKEN,) * (num_output - 1))
        computed = list(chains.hashes(self._replica))
        extend_chain(computed, root_hash(), known, size)
        self._seen.update(key[:NAME_BYTES] for key in computed[matched:])
