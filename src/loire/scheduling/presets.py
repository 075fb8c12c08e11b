"""The historical systems by name: each is a batching policy with an allocator."""

from loire.base.config import EngineConfig
from loire.base.errors import ConfigError
from loire.memory.paged import PagedAllocator
from loire.scheduling.batching import Continuous
from loire.scheduling.scheduler import Scheduler


def build_scheduler(config: EngineConfig) -> Scheduler:
    """The scheduler of a configuration. Raises ConfigError for a policy that is not known."""
    if config.policy != "paged":
        raise ConfigError(f"policy {config.policy!r} is not available; there is 'paged'")
    return Scheduler(
        PagedAllocator(
            config.num_blocks, config.block_size, prefix_caching=config.enable_prefix_caching
        ),
        Continuous(config.max_num_seqs),
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=config.max_model_len,
    )
