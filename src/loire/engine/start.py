"""From a model's name to a running engine in this process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from loire.base.cache_geometry import CacheGroup
from loire.base.config import EngineConfig, EngineOptions, Policy, Reserve
from loire.base.executor import StepExecutor
from loire.base.kv_events import KVEvents
from loire.checkpoint.checkpoint import Checkpoint
from loire.checkpoint.open import open_checkpoint
from loire.checkpoint.sharding import rank_of
from loire.checkpoint.share import Share, settle_chunks
from loire.checkpoint.store import resolve_model
from loire.engine.core import EngineCore
from loire.engine.frontend import Frontend
from loire.memory.block_events import BlockEvent
from loire.scheduling.presets import build_scheduler

if TYPE_CHECKING:
    from loire.engine.ranks import RankProcesses
    from loire.execution.adapters import AdapterShelf
    from loire.execution.constraints import ConstraintFactory

MakeCore: TypeAlias = "Callable[[EngineConfig, StepExecutor, ConstraintFactory], EngineCore]"


@dataclass(frozen=True, slots=True)
class Engine:
    """A loaded model: its checkpoint, the core, and what was settled for it."""

    config: EngineConfig
    checkpoint: Checkpoint
    core: EngineCore
    executor: StepExecutor
    constraints: "ConstraintFactory"
    """Of the sequences that the executor computes."""
    adapters: "AdapterShelf"
    """Those that requests may name."""
    weight_bytes: int
    """Bytes of all weights as held in memory."""
    step_bytes: Callable[[int], int]
    """Bytes of weights that a step of so many tokens reads: of experts, those to be expected."""
    head_bytes: int
    """Those of them in the output head."""
    available_bytes: int
    """Memory that was available before the KV pool was made."""
    kernels: str
    """Name of the backend that computes."""
    weights_held: str
    """In what the weights are held: formats, their bits and shares."""
    load_s: float
    other_ranks: "RankProcesses | None" = None
    """The other processes that compute the model."""

    def close(self) -> None:
        """End the other processes, if there are any. To be called when nothing computes."""
        if self.other_ranks is not None:
            self.other_ranks.close()

    @property
    def bytes_per_step(self) -> int:
        """Those that a step of one token reads."""
        return self.step_bytes(1)

    def core_for(
        self,
        policy: Policy,
        *,
        prefix_caching: bool,
        reserve: Reserve,
        around: Callable[[StepExecutor], StepExecutor] = lambda executor: executor,
    ) -> EngineCore:
        """An idle core over the same loaded model and KV memory, with another policy.

        around: wraps the executor. Only one core may have work at a time.
        """
        config = replace(
            self.config, policy=policy, enable_prefix_caching=prefix_caching, reserve=reserve
        )
        return EngineCore(build_scheduler(config), around(self.executor))

    def frontend(self) -> Frontend:
        """Make the client's side: tokenizer, chat template and request checks."""
        return Frontend(
            self.checkpoint,
            self.config.max_model_len,
            self.config.seed,
            allow_special_in_text=self.config.allow_special_in_text,
            system=self.config.system,
        )

    @property
    def plan_lines(self) -> tuple[str, str]:
        """How the memory is used and what fits, in two lines."""
        config = self.config
        return (
            f"{config.model}: weights {_gb(self.weight_bytes)} ({self._weights}), KV pool "
            f"{_gb(config.kv_pool_bytes)} of {_gb(self.available_bytes)} available: "
            f"{_blocks(config)} = {config.kv_pool_tokens:,} tokens at "
            f"{_kv_bytes_per_token(config) / 1000:,.1f} kB",
            f"fits {config.kv_pool_tokens / config.max_model_len:.1f} requests of "
            f"{config.max_model_len:,} tokens; up to {config.max_num_seqs} sequences and "
            f"{config.max_num_batched_tokens:,} tokens per step, policy {config.policy}, prefix "
            f"caching {'on' if config.enable_prefix_caching else 'off'}",
        )

    @property
    def _weights(self) -> str:
        """In what they are held, and what is computed in."""
        dtype = self.config.dtype
        return dtype if self.weights_held in ("", dtype) else f"{self.weights_held}; {dtype}"


def start_engine(
    model: str,
    options: EngineOptions,
    *,
    allow_download: bool = True,
    progress: Callable[[float], None] | None = None,
) -> Engine:
    """Resolve, read and load a model, and put an idle engine around it.

    Raises ModelError or ConfigError, saying what to do.
    """
    checkpoint = open_checkpoint(resolve_model(model, allow_download=allow_download))
    return load_engine(checkpoint, options, name=model, progress=progress)


def load_engine(
    checkpoint: Checkpoint,
    options: EngineOptions,
    *,
    name: str,
    progress: Callable[[float], None] | None = None,
    make_core: "MakeCore | None" = None,
    is_own_process: bool = False,
) -> Engine:
    """Load a checkpoint that was opened, and put an idle engine around it.

    is_own_process: whether this process does nothing else, so that it may be kept to some CPUs.

    Raises as above.
    """
    import time

    started = time.perf_counter()
    other_ranks = None
    if options.tensor_parallel_size > 1:
        options, other_ranks = _start_ranks(checkpoint, options, is_own_process=is_own_process)
    from loire.execution.build import build_runner

    on_blocks = None if options.kv_events is None else _publisher(options.kv_events)
    try:
        built = build_runner(
            checkpoint, options, name=name, progress=progress, other_ranks=other_ranks
        )
    except BaseException:
        if other_ranks is not None:
            other_ranks.close()
        raise
    config = built.config
    core = (make_core or _core)(config, built.runner, built.runner.constraints)
    core.on_blocks = on_blocks
    core.scheduler.entrance.adapter_ready = built.adapters.is_ready
    built.adapters.is_wanted = core.scheduler.wants_adapter
    return Engine(
        config=config,
        checkpoint=checkpoint.with_options(options),
        core=core,
        executor=built.runner,
        constraints=built.runner.constraints,
        adapters=built.adapters,
        weight_bytes=built.weight_bytes,
        step_bytes=built.runner.decoder.bytes_per_step,
        head_bytes=built.runner.decoder.head.weight_bytes,
        available_bytes=built.available_bytes,
        kernels=built.runner.decoder.backend.name,
        weights_held=built.runner.decoder.held,
        load_s=time.perf_counter() - started,
        other_ranks=other_ranks,
    )


def _start_ranks(
    checkpoint: Checkpoint, options: EngineOptions, *, is_own_process: bool
) -> "tuple[EngineOptions, RankProcesses]":
    """The other processes that compute the model, which begin to import what they need, and the
    options of each. Raises ConfigError if the model does not go with so many."""
    from loire.engine.ranks import RankProcesses, keep_to_cores, with_threads

    size = options.tensor_parallel_size
    rank_of(checkpoint, Share(0, size, settle_chunks(size, options.sum_chunks)))
    options = with_threads(options)
    ranks = RankProcesses(str(checkpoint.path), options)
    if is_own_process:
        keep_to_cores(size)
    return options, ranks


def _core(
    config: EngineConfig, executor: StepExecutor, constraints: "ConstraintFactory"
) -> EngineCore:
    return EngineCore(
        build_scheduler(config),
        executor,
        depth=config.pipeline_depth,
        form_ready=constraints.ready,
    )


def _publisher(where: KVEvents) -> Callable[[Sequence[BlockEvent]], None]:
    from loire.engine.kv_events import KVEventPublisher

    return KVEventPublisher(where).publish


def _blocks(config: EngineConfig) -> str:
    """The blocks of the pool; where layers have groups, what a page holds of each."""
    groups = config.geometry.groups
    if len(groups) == 1:
        return f"{config.num_blocks:,} blocks of {config.block_size}"
    parts = [_group(group, config.geometry.page_bytes) for group in groups]
    return f"{config.num_blocks:,} pages ({', '.join(parts)})"


def _group(group: CacheGroup, page_bytes: int) -> str:
    if group.kind == "state":
        slot = group.pages_per_state * page_bytes
        return f"{len(group.layers)} layers with states of {slot / 1e6:,.1f} MB per sequence"
    window = "" if group.window is None else f" of a window of {group.window:,}"
    return f"{len(group.layers)} layers x {group.block_size}{window}"


def _kv_bytes_per_token(config: EngineConfig) -> float:
    """In a request of max_model_len: some layers hold no more than a window, or a state."""
    return config.kv_pool_bytes / max(config.kv_pool_tokens, 1)


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
