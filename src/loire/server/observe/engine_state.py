"""How an engine stands at some moment, for those who watch it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """An engine at this moment."""

    num_running: int
    """Requests."""
    num_waiting: int
    num_waiting_tokens: int
    num_blocks: int
    """KV blocks of the pool."""
    num_blocks_in_use: int
    num_restarts: int
    """Engines that were started to replace one that had died."""
    model: str
    """The first name that it is served under."""
    block_size: int
    """Tokens per KV block."""
    kv_cache_dtype: str
    enable_prefix_caching: bool

    @property
    def kv_usage(self) -> float:
        """Share of the pool that requests hold, 0 to 1."""
        return self.num_blocks_in_use / self.num_blocks
