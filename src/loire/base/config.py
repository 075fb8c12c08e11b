"""Configuration: what the user asked for, what is known, and the one function that settles it.

EngineOptions is the request, ModelFacts and MachineFacts are the circumstances, EngineConfig is
the frozen answer. Nothing changes a setting after resolve().
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from loire.base.cache_geometry import CacheGeometry, LayerNeed, cache_geometry
from loire.base.errors import CapacityError, ConfigError
from loire.base.kv_events import KVEvents

DType = Literal["bfloat16", "float16", "float32"]
Policy = Literal["sequential", "static", "orca", "paged"]
Reserve = Literal["max-tokens", "window"]
Quantization = Literal["int8", "int4"]
WeightQuantization = Literal["auto", "none", "int8", "int4"]
GenerationConfig = Literal["auto", "none"]
KVCacheDType = Literal["bfloat16", "float16", "float32", "int8"]

DTYPE_BYTES: dict[str, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
BLOCK_SIZES = (8, 16, 32, 64, 128)
BACKGROUND_ALONE = 32
"""So many times the background_tokens are computed in a step of background work alone."""
BESIDE_STREAMS = 4
"""So many times as many tokens of prompts are computed in a step that running sequences of the same
tenant wait for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Settings as the user gives them; None means: find out.

    Attributes:
        dtype: of weights and KV; "auto" is bfloat16.
        kv_cache_dtype: of the KV alone; "auto" is dtype, "int8" rounds each key and value to eight
            bits with a scale of its own.
        device: a torch device such as "cpu" or "cuda:0"; "auto" takes the best one present.
        max_model_len: window of a request, prompt and output together, in tokens.
        max_num_seqs: most sequences in one step.
        max_num_batched_tokens: token budget of a step.
        block_size: tokens per KV block.
        enable_prefix_caching: reuse KV blocks of equal prefixes; on by default under `paged`.
        kv_cache_memory_bytes: size of the KV pool; by default a share of the free memory.
        policy: preset of batching policy and KV allocator.
        reserve: what the reserved allocator sets aside per request.
        quantization: of the weights; "auto" keeps what the file has, "none" expands quantized ones
            to dtype, "int8" and "int4" round those of 16 or 32 bits while they are loaded (the
            output head to 8 bits in either).
        kernels: "auto" or the name of a backend in loire.kernels.
        num_threads: of the CPU kernels; by default the cores this process may use.
        pipeline_depth: 2 schedules a step while the one before it computes; 1 does not.
        generation_config: "auto" samples requests that say nothing of it as the model's makers
            recommend, "none" by the plain distribution.
        override_generation_config: other values for what they recommend, by the names of
            SamplingParams.
        chat_template: a Jinja template in place of the model's own.
        seed: from which the seeds of unseeded requests are drawn; random by default.
        lora_memory_bytes: of adapters' weights; those that no running request uses make room for
            others beyond it.
        max_cpu_loras: the same as a number of adapters; None: only bytes count.
        max_loras: of a step, in vLLM; here nothing bounds them, and it is only checked.
        max_lora_rank: adapters of a larger rank are refused; None: those beyond 512.
        enable_lora: False refuses all adapters.
        kv_events: where others are told which KV blocks can be found here; None: nowhere.
        tensor_parallel_size: processes that compute the model together, each with a share of its
            weights and KV memory.
        sum_chunks: the sums that tensor parallelism divides are taken in a tree of so many chunks,
            so that any number of processes that goes with it gives the same bits; None: 8 for 2, 4
            and 8 processes, 12 for 3 and 6, and 0, no chunks, for one.
        system: a system message for conversations that begin without one.
        allow_special_in_text: control tokens that a user writes in a conversation count as such,
            so that the text can begin a turn of its own; by default they are text.
    """

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    kv_cache_dtype: Literal["auto", "int8"] = "auto"
    device: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 128
    max_num_batched_tokens: int = 2048
    block_size: int = 16
    enable_prefix_caching: bool | None = None
    kv_cache_memory_bytes: int | None = None
    policy: Policy = "paged"
    reserve: Reserve = "max-tokens"
    quantization: WeightQuantization = "auto"
    kernels: str = "auto"
    num_threads: int | None = None
    pipeline_depth: Literal[1, 2] = 1
    generation_config: GenerationConfig = "auto"
    override_generation_config: Mapping[str, float] = field(default_factory=dict)
    chat_template: str | None = None
    seed: int | None = None
    lora_memory_bytes: int = 2**30
    max_cpu_loras: int | None = None
    max_loras: int | None = None
    max_lora_rank: int | None = None
    enable_lora: bool = True
    kv_events: KVEvents | None = None
    tensor_parallel_size: int = 1
    sum_chunks: int | None = None
    allow_special_in_text: bool = False
    system: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What resolve() must know about the model."""

    name: str
    max_positions: int
    """Longest window the model is meant for, in tokens."""
    default_window: int
    """Window to serve when none is asked for."""
    cache_needs: tuple[LayerNeed | None, ...]
    """What each layer keeps, in the KV cache's dtype; None for nothing of its own. Where several
    processes compute it: of one of them."""
    doubling_context: int | None = None
    """See EngineConfig."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """What resolve() must know about the machine: what one of the processes that compute may
    take."""

    device: str
    available_memory_bytes: int
    """Memory that could be taken now without pushing anything out."""
    activation_bytes: int = 0
    """Of the largest tensors of a step: reserved before the KV pool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Settled configuration of an engine. Sizes in tokens, blocks or bytes, as named."""

    model: str
    dtype: DType
    kv_cache_dtype: KVCacheDType
    device: str
    tensor_parallel_size: int = 1
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    geometry: CacheGeometry
    """Of one process."""
    num_blocks: int
    """Pages of the KV pool: blocks of whatever cache group needs one. Each process has as many."""
    enable_prefix_caching: bool
    policy: Policy
    reserve: Reserve
    pipeline_depth: int
    seed: int | None
    allow_special_in_text: bool = False
    system: str = ""
    kv_events: KVEvents | None = None
    doubling_context: int | None = None
    """Tokens of context behind which a token of a prompt takes twice as long as at its beginning;
    None: it never does."""

    computed_by: str = ""
    """What computes the KV, by content: model, dtypes, quantization, blocks and kernels. Hashes
    that outlive a process say so."""

    @property
    def background_tokens(self) -> int:
        """Most tokens of background work in a step that others wait for.

        As many as cost little beside reading the weights once, which every step does: a CPU
        computes two or three tokens in that time, an accelerator a hundred and more.
        """
        return 2 if self.device == "cpu" else 128

    @property
    def background_tokens_alone(self) -> int:
        """Most tokens of a step of background work alone."""
        return self.background_tokens * BACKGROUND_ALONE

    @property
    def most_ahead(self) -> int:
        """Tokens that are held beside a window: those of one sequence that are being computed at a
        time, or all where memory is reserved."""
        return _most_ahead(self)

    @property
    def block_size(self) -> int:
        """Tokens of the finest block."""
        return self.geometry.block_size

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that a new token takes in all layers and processes."""
        of_one = sum(group.bytes_per_token for group in self.geometry.groups)
        return of_one * self.tensor_parallel_size

    @property
    def kv_pool_tokens(self) -> int:
        """Tokens that the KV pool holds in requests of max_model_len."""
        unit = self.geometry.unit
        window = -(-self.max_model_len // unit) * unit
        return self.num_blocks * window // self.geometry.pages_for(window, self.most_ahead)

    @property
    def kv_pool_bytes(self) -> int:
        """Bytes of the KV pool, in all processes together."""
        return self.num_blocks * self.geometry.page_bytes * self.tensor_parallel_size


KV_MEMORY_SHARE = 0.5
"""Share of the available memory that the KV pool takes at most when no size is given."""


def resolve(
    options: EngineOptions, dtype: DType, model: ModelFacts, machine: MachineFacts
) -> EngineConfig:
    """Settle the configuration: pure, and the only place that decides.

    The KV pool takes ``kv_cache_memory_bytes`` if given, else KV_MEMORY_SHARE of the memory that is
    available beside the tensors of a step, but never more than max_num_seqs full windows need.

    Raises ConfigError for values that cannot work and CapacityError if one request of
    max_model_len does not fit into the pool alone.
    """
    _check_options(options)
    max_model_len = options.max_model_len or model.default_window
    if max_model_len > model.max_positions:
        raise ConfigError(
            f"max_model_len is {max_model_len}, but {model.name} is made for at most "
            f"{model.max_positions} positions; ask for no more than that"
        )
    geometry = cache_geometry(model.cache_needs, options.block_size)
    page, ahead = geometry.page_bytes, _most_ahead(options)
    num_needed = geometry.pages_for(max_model_len, ahead)
    if options.kv_cache_memory_bytes is not None:
        num_blocks = options.kv_cache_memory_bytes // options.tensor_parallel_size // page
    else:
        left = max(machine.available_memory_bytes - machine.activation_bytes, 0)
        affordable = int(left * KV_MEMORY_SHARE) // page
        num_blocks = min(affordable, num_needed * options.max_num_seqs)
    if num_blocks < 1:
        raise CapacityError(
            f"there is no room for a single KV block of {geometry.block_size} tokens, which takes "
            f"{_mib(page)}: "
            + (
                f"kv_cache_memory_bytes is {_mib(options.kv_cache_memory_bytes)}"
                if options.kv_cache_memory_bytes is not None
                else f"{_mib(machine.available_memory_bytes)} are available, of which a step's "
                f"tensors take {_mib(machine.activation_bytes)} and KV half of the rest"
            )
        )
    if num_blocks < num_needed:
        longest = geometry.longest_in(num_blocks, ahead, max_model_len)
        if options.max_model_len is None and options.kv_cache_memory_bytes is None and longest:
            max_model_len = longest  # nobody asked for the full window: serve what fits
        else:
            raise CapacityError(
                f"one request of max_model_len = {max_model_len} tokens needs {num_needed} KV "
                f"blocks of {geometry.block_size} tokens ({_mib(num_needed * page)}), but the pool "
                f"has {num_blocks} ({_mib(num_blocks * page)}); raise kv_cache_memory_bytes or "
                f"lower max_model_len to at most {longest}"
            )
    caching = options.enable_prefix_caching
    return EngineConfig(
        model=model.name,
        dtype=dtype,
        kv_cache_dtype=settle_kv_cache_dtype(options, dtype),
        device=machine.device,
        tensor_parallel_size=options.tensor_parallel_size,
        max_model_len=max_model_len,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        geometry=geometry,
        num_blocks=num_blocks,
        enable_prefix_caching=options.policy == "paged" if caching is None else caching,
        policy=options.policy,
        reserve=options.reserve,
        pipeline_depth=options.pipeline_depth,
        seed=options.seed,
        allow_special_in_text=options.allow_special_in_text,
        system=options.system,
        kv_events=options.kv_events,
        doubling_context=model.doubling_context,
    )


def settle_kv_cache_dtype(options: EngineOptions, dtype: DType) -> KVCacheDType:
    """What the KV cache holds, for a model in dtype."""
    return dtype if options.kv_cache_dtype == "auto" else options.kv_cache_dtype


def _most_ahead(given: EngineOptions | EngineConfig) -> int:
    if given.policy != "paged":
        return 2**40  # reserved memory gives nothing back
    return given.pipeline_depth * given.max_num_batched_tokens


def _check_options(options: EngineOptions) -> None:
    for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "num_threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, but is {value}")
    if options.block_size not in BLOCK_SIZES:
        raise ConfigError(f"block_size must be one of {BLOCK_SIZES}, but is {options.block_size}")
    if options.pipeline_depth not in (1, 2):
        raise ConfigError(f"pipeline_depth must be 1 or 2, but is {options.pipeline_depth}")
    if options.enable_prefix_caching and options.policy != "paged":
        raise ConfigError(
            f"prefix caching needs blocks that can be shared: it works with policy 'paged', "
            f"not with {options.policy!r}, which reserves memory per request"
        )


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
