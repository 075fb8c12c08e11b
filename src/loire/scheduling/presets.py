"""The historical systems by name: each is a batching policy with an allocator."""

import time
from collections.abc import Callable

from loire.base.config import EngineConfig
from loire.base.errors import ConfigError
from loire.memory.allocator import KVAllocator
from loire.memory.paged import PagedAllocator
from loire.memory.reserved import ReservedAllocator
from loire.scheduling.batching import BatchingPolicy, Continuous, Sequential, Static
from loire.scheduling.context_cost import ContextCost
from loire.scheduling.scheduler import Scheduler


def build_scheduler(
    config: EngineConfig,
    *,
    clock: Callable[[], float] = time.monotonic,
    notes_names: bool = False,
) -> Scheduler:
    """The scheduler of a configuration. clock: in seconds; simulations bring their own.
    notes_names: its allocator's take_names() is used."""
    return Scheduler(
        _allocator(config, notes_names),
        _batching(config),
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=config.max_model_len,
        background_tokens=config.background_tokens,
        context_cost=ContextCost(config.doubling_context),
        computed_by=config.computed_by,
        clock=clock,
    )


def _batching(config: EngineConfig) -> BatchingPolicy:
    if config.policy == "sequential":
        return Sequential()
    if config.policy == "static":
        return Static(config.max_num_seqs)
    if config.policy in ("orca", "paged"):
        return Continuous(config.max_num_seqs)
    raise ConfigError(
        f"there is no policy {config.policy!r}; there are sequential, static, orca and paged"
    )


def _allocator(config: EngineConfig, notes_names: bool) -> KVAllocator:
    if config.policy == "paged":
        return PagedAllocator(
            config.num_blocks,
            config.geometry,
            prefix_caching=config.enable_prefix_caching,
            most_ahead=config.most_ahead,
            notes_events=config.kv_events is not None,
            notes_names=notes_names,
        )
    return ReservedAllocator(
        config.num_blocks,
        config.geometry,
        reserve=config.reserve,
        max_model_len=config.max_model_len,
    )
