"""How an engine stands at some moment, for those who watch it."""

from dataclasses import dataclass

from loire.base.messages import AdapterCounts


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
    adapters: AdapterCounts | None
    """None: it can have none."""
    max_adapters: int
    """Adapters that can be in memory together."""
    running_adapters: tuple[str, ...]
    """Names of those that some request is for of which something is computed."""
    waiting_adapters: tuple[str, ...]
    """The same of requests that wait."""

    @property
    def kv_usage(self) -> float:
        """Share of the pool that requests hold, 0 to 1."""
        return self.num_blocks_in_use / self.num_blocks
