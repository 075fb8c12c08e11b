"""From options and a checkpoint to a runner that is ready to compute."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import torch

from loire.base.cache_geometry import CacheGeometry, cache_geometry
from loire.base.config import (
    DTYPE_BYTES,
    DType,
    EngineConfig,
    EngineOptions,
    MachineFacts,
    ModelFacts,
    resolve,
    settle_kv_cache_dtype,
)
from loire.base.errors import ConfigError
from loire.base.machine import usable_cores
from loire.checkpoint.checkpoint import Checkpoint
from loire.checkpoint.digest import model_digest
from loire.checkpoint.sharding import rank_of
from loire.checkpoint.share import Share, settle_chunks
from loire.execution.adapters import AdapterShelf
from loire.execution.constraints import ConstraintFactory
from loire.execution.device import (
    KV_CACHE_DTYPES,
    TORCH_DTYPES,
    available_memory,
    select_device,
    select_dtype,
)
from loire.execution.forward import ForwardPass, OtherRanks, StepInputs
from loire.execution.hidden_states import HiddenStates
from loire.execution.kv_cache import KVCache
from loire.execution.runner import ModelRunner
from loire.execution.threads import torch_threads
from loire.kernels.interface import Backend, HostBatch, Meeting, Ranks
from loire.kernels.select import select_backend
from loire.models.adapters import AdapterWeights, adapt, drop_adapter, read_adapter
from loire.models.decoder import Decoder
from loire.models.loading import load_decoder
from loire.planning.capacity import activation_reserve, results_reserve
from loire.planning.model_size import doubling_context
from loire.text.tokenizer import checkpoint_tokenizer

Progress = Callable[[float], None]
"""Told the loaded share of the weights, 0 to 1."""


class JoiningRanks(OtherRanks, Protocol):
    """The other ranks while they load. They fail with what stopped them, or RankLostError."""

    memory: int
    """A file for memory that all share (see Meeting)."""

    def load(self, window: int, file: str) -> None:
        """Begin to read their shares. window: the longest that positions are prepared for. file:
        a path to meet at, as Meeting has it."""
        ...

    def joined(self, ranks: Ranks) -> None:
        """This rank has met them."""
        ...

    def loaded(self) -> int:
        """Wait until they have; bytes of the weights that they hold together."""
        ...

    def make_caches(self, num_blocks: int) -> None:
        """Make the KV pools, as large as rank 0's, and wait until they are ready to compute."""
        ...


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """A runner with the configuration it was built for."""

    config: EngineConfig
    runner: ModelRunner
    adapters: AdapterShelf
    weight_bytes: int
    """Bytes of the weights as held in memory, in all processes."""
    available_bytes: int
    """Memory that was available after loading the weights, before the KV pool."""


@dataclass(frozen=True, slots=True)
class _Rank:
    """What a process computes with."""

    share: Share
    device: torch.device
    dtype: DType
    backend: Backend

    @property
    def torch_dtype(self) -> torch.dtype:
        """Its dtype, as torch calls it."""
        return TORCH_DTYPES[self.dtype]

    def load(
        self,
        checkpoint: Checkpoint,
        options: EngineOptions,
        window: int,
        ranks: Ranks,
        progress: Progress | None = None,
    ) -> Decoder:
        """Read this rank's share of the weights."""
        return load_decoder(
            checkpoint,
            dtype=self.torch_dtype,
            device=self.device,
            backend=self.backend,
            max_model_len=window,
            quantization=options.quantization,
            progress=progress,
            share=self.share,
            ranks=ranks,
        )

    def cache(
        self, decoder: Decoder, options: EngineOptions, geometry: CacheGeometry, num_blocks: int
    ) -> KVCache:
        """The KV pool of a decoder. Memory for the largest step is ready then: the system takes its
        time to give it, and the first long prompt would wait."""
        dtype = KV_CACHE_DTYPES[settle_kv_cache_dtype(options, self.dtype)]
        description, attention = decoder.description, self.backend.attention
        cache = KVCache(description, geometry, num_blocks, dtype, attention, self.device)
        tokens = min(options.max_num_batched_tokens, num_blocks * geometry.block_size)
        cache.touch(tokens)
        results = results_reserve(description, DTYPE_BYTES[self.dtype], tokens)
        self.backend.reserve(tokens, results)
        return cache


def _rank(options: EngineOptions, number: int) -> _Rank:
    size = options.tensor_parallel_size
    share = Share(number, size, settle_chunks(size, options.sum_chunks))
    # PyTorch knows nothing of a container's CPU quota.
    torch.set_num_threads(options.num_threads or min(torch.get_num_threads(), usable_cores()))
    device = select_device(options.device)
    if size > 1 and device.type != "cpu":
        raise ConfigError(f"tensor parallelism computes on CPUs as yet, not on {str(device)!r}")
    dtype = select_dtype(options)
    backend = select_backend(
        options.kernels, device, TORCH_DTYPES[dtype], options.num_threads, sum_chunks=share.chunks
    )
    return _Rank(share, device, dtype, backend)


def build_runner(
    checkpoint: Checkpoint,
    options: EngineOptions,
    *,
    name: str,
    progress: Progress | None = None,
    other_ranks: JoiningRanks | None = None,
) -> BuiltEngine:
    """Load the weights, settle the configuration from what memory is left, make the KV pool.

    other_ranks: as many as options.tensor_parallel_size says beside this one.

    Raises ModelError if the checkpoint cannot be loaded, ConfigError or CapacityError if the
    options do not work with it.
    """
    rank = _rank(options, 0)
    size, device, backend = rank.share.size, rank.device, rank.backend
    description, _ = rank_of(checkpoint, rank.share)
    kv_dtype = settle_kv_cache_dtype(options, rank.dtype)
    facts = ModelFacts(
        name=name,
        max_positions=description.max_positions,
        default_window=description.default_window,
        cache_needs=description.cache_needs(kv_dtype),
        doubling_context=doubling_context(checkpoint.description),
    )

    activations = activation_reserve(
        description,
        element_bytes=DTYPE_BYTES[rank.dtype],
        num_tokens=options.max_num_batched_tokens,
        num_rows=options.max_num_seqs,
    )

    def settle() -> tuple[EngineConfig, int]:
        available = available_memory(device)
        machine = MachineFacts(
            device=str(device),
            available_memory_bytes=available // size,
            activation_bytes=activations,
        )
        return resolve(options, rank.dtype, facts, machine), available

    # What has no room before the weights are read has none after; and tables of positions are made
    # for a window that can be served, whatever the model claims.
    window = settle()[0].max_model_len
    with TemporaryDirectory() as folder:
        meeting = Meeting(0, size)
        if other_ranks is not None:
            meeting = Meeting(0, size, other_ranks.memory, str(Path(folder) / "ranks"))
            other_ranks.load(window, meeting.file)
        ranks = backend.join(meeting)
        if other_ranks is not None:
            other_ranks.joined(ranks)
        decoder = rank.load(checkpoint, options, window, ranks, progress)
        weight_bytes = decoder.weight_bytes + (other_ranks.loaded() if other_ranks else 0)
    config, available = settle()
    what = (
        model_digest(checkpoint),
        config.dtype,
        config.kv_cache_dtype,
        options.quantization,
        config.geometry,
        backend.numbers,
    )
    config = replace(
        config, max_model_len=min(config.max_model_len, window), computed_by=repr(what)
    )
    cache = rank.cache(decoder, options, config.geometry, config.num_blocks)
    if other_ranks is not None:
        other_ranks.make_caches(config.num_blocks)
    constraints = ConstraintFactory(
        partial(checkpoint_tokenizer, checkpoint), description.vocab_size
    )
    adapters = AdapterShelf(decoder, device, options.lora_memory_bytes, options.max_cpu_loras)
    if other_ranks is not None:
        adapters.on_adapt = other_ranks.adapt
    runner = ModelRunner(
        decoder,
        cache,
        device,
        constraints,
        plans_ahead=config.pipeline_depth > 1,
        adapters=adapters,
        other_ranks=other_ranks,
    )
    return BuiltEngine(config, runner, adapters, weight_bytes, available)


class FollowingRank:
    """A rank other than the first: it computes what it is told."""

    def __init__(
        self, checkpoint: Checkpoint, options: EngineOptions, meeting: Meeting, window: int
    ) -> None:
        """Load its share of the weights. Raises as build_runner()."""
        self._rank = _rank(options, meeting.rank)
        self._options = options
        ranks = self._rank.backend.join(meeting)
        self._decoder = self._rank.load(checkpoint, options, window, ranks)
        self._latest = torch.zeros(0, dtype=torch.int64)
        self._forward: ForwardPass | None = None
        self._hidden = torch.zeros(0)
        self._known: HostBatch | None = None
        self._adapters: dict[int, AdapterWeights] = {}

    @property
    def weight_bytes(self) -> int:
        """Of its share."""
        return self._decoder.weight_bytes

    def make_cache(self, num_blocks: int) -> None:
        """Make the KV pool; steps may come then."""
        kv_dtype = settle_kv_cache_dtype(self._options, self._rank.dtype)
        needs = self._decoder.description.cache_needs(kv_dtype)
        geometry = cache_geometry(needs, self._options.block_size)
        cache = self._rank.cache(self._decoder, self._options, geometry, num_blocks)
        self._forward = ForwardPass(self._decoder, cache)

    @property
    def block_sizes(self) -> Sequence[int]:
        """Of its cache groups."""
        assert self._forward is not None, "there is a KV pool"
        return self._forward.block_sizes

    def compute(self, inputs: StepInputs) -> None:
        """This rank's part of a step."""
        assert self._forward is not None, "there is a KV pool"
        with torch.inference_mode(), torch_threads(self._rank.backend.torch_threads):
            self._hidden, self._known = self._forward(inputs, self._latest)

    def logits(self, tokens: Sequence[int]) -> None:
        """This rank's part of the logits behind tokens of that step."""
        assert self._forward is not None, "there is a KV pool"
        assert self._known is not None, "a step was computed"
        with torch.inference_mode(), torch_threads(self._rank.backend.torch_threads):
            HiddenStates(self._forward.logits, self._hidden, self._known, (), self._latest).logits(
                tokens
            )

    def adapt(self, number: int, path: str | None) -> None:
        """From now on tokens of adapter `number` have the one in this directory; None: none.

        Raises ModelError if it cannot be read.
        """
        before = self._adapters.pop(number, None)
        if before is not None:
            drop_adapter(number, (product for product, _ in before))
        if path is not None:
            with torch.inference_mode():
                _, weights = read_adapter(Path(path), self._decoder, self._rank.device)
            adapt(number, weights)
            self._adapters[number] = weights
