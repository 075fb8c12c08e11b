"""From options and a checkpoint to a runner that is ready to compute."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from loire.base.config import (
    DTYPE_BYTES,
    EngineConfig,
    EngineOptions,
    MachineFacts,
    ModelFacts,
    resolve,
    settle_kv_cache_dtype,
)
from loire.base.machine import usable_cores
from loire.checkpoint.checkpoint import Checkpoint
from loire.checkpoint.digest import model_digest
from loire.execution.adapters import AdapterShelf
from loire.execution.constraints import ConstraintFactory
from loire.execution.device import (
    KV_CACHE_DTYPES,
    TORCH_DTYPES,
    available_memory,
    select_device,
    select_dtype,
)
from loire.execution.kv_cache import KVCache
from loire.execution.runner import ModelRunner
from loire.kernels.select import select_backend
from loire.models.loading import load_decoder
from loire.planning.capacity import activation_reserve
from loire.text.tokenizer import checkpoint_tokenizer

Progress = Callable[[float], None]
"""Told the loaded share of the weights, 0 to 1."""


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """A runner with the configuration it was built for."""

    config: EngineConfig
    runner: ModelRunner
    adapters: AdapterShelf
    weight_bytes: int
    """Bytes of the weights as held in memory."""
    available_bytes: int
    """Memory that was available after loading the weights, before the KV pool."""


def build_runner(
    checkpoint: Checkpoint,
    options: EngineOptions,
    *,
    name: str,
    progress: Progress | None = None,
) -> BuiltEngine:
    """Load the weights, settle the configuration from what memory is left, make the KV pool.

    Raises ModelError if the checkpoint cannot be loaded, ConfigError or CapacityError if the
    options do not work with it.
    """
    description = checkpoint.description
    # PyTorch knows nothing of a container's CPU quota.
    torch.set_num_threads(options.num_threads or min(torch.get_num_threads(), usable_cores()))
    device = select_device(options.device)
    dtype = select_dtype(options)
    torch_dtype = TORCH_DTYPES[dtype]
    backend = select_backend(options.kernels, device, torch_dtype, options.num_threads)
    kv_dtype = settle_kv_cache_dtype(options, dtype)
    facts = ModelFacts(
        name=name,
        max_positions=description.max_positions,
        default_window=description.default_window,
        cache_needs=description.cache_needs(kv_dtype),
    )

    activations = activation_reserve(
        description,
        element_bytes=DTYPE_BYTES[dtype],
        num_tokens=options.max_num_batched_tokens,
        num_rows=options.max_num_seqs,
    )

    def settle() -> tuple[EngineConfig, int]:
        available = available_memory(device)
        machine = MachineFacts(
            device=str(device), available_memory_bytes=available, activation_bytes=activations
        )
        return resolve(options, dtype, facts, machine), available

    # What has no room before the weights are read has none after; and tables of positions are made
    # for a window that can be served, whatever the model claims.
    window = settle()[0].max_model_len
    decoder = load_decoder(
        checkpoint,
        dtype=torch_dtype,
        device=device,
        backend=backend,
        max_model_len=window,
        quantization=options.quantization,
        progress=progress,
    )
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
    cache = KVCache(
        description,
        config.geometry,
        config.num_blocks,
        KV_CACHE_DTYPES[kv_dtype],
        backend.attention,
        device,
    )
    constraints = ConstraintFactory(
        partial(checkpoint_tokenizer, checkpoint), description.vocab_size
    )
    ahead = config.pipeline_depth > 1
    adapters = AdapterShelf(decoder, device, options.lora_memory_bytes, options.max_cpu_loras)
    runner = ModelRunner(decoder, cache, device, constraints, plans_ahead=ahead, adapters=adapters)
    return BuiltEngine(config, runner, adapters, decoder.weight_bytes, available)
