"""CPU backend in C++: a row's result is the same bits whatever it is computed with."""

import weakref
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from loire.base.config import Quantization
from loire.base.errors import ConfigError, EngineError
from loire.base.machine import usable_cores
from loire.checkpoint.feed_forward import Activation
from loire.checkpoint.formats import Q4_1, Q4_K, WeightFormat
from loire.kernels.block_formats import StoredTensor
from loire.kernels.dequantize import dequantize_by_library
from loire.kernels.interface import (
    AttentionPlan,
    AttentionShape,
    ComputeStep,
    FlatBatch,
    HeadNorms,
    LayerCache,
    Linear,
    RotaryTable,
    SamplingKnobs,
    Weight,
    parts_of,
)
from loire.kernels.native import calls
from loire.kernels.native.dtypes import TYPES, type_number
from loire.kernels.native.library import load_library
from loire.kernels.native.linear import FORMATS, STORED_FORMAT, NativeLinear, q4_1_blocks
from loire.kernels.native.plan import NativePlan
from loire.kernels.native.recording import RecordedSteps
from loire.kernels.native.results import Results

_BLOCK_FORMATS = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13,
                  "Q6_K": 14}  # fmt: skip
"""Numbers of GGUF, as in source/kernels/operations.h."""
_EVERYTHING = 2**62
"""A window that no context fills."""
_AMX_UNPROVEN = 2
"""As in source/runtime/amx.h: processor and system provide AMX, but the kernels failed with it."""


class NativeBackend:
    """See kernels.interface.Backend. For bfloat16 and float32 tensors on the CPU.

    Sums are taken in a fixed order per row: not the other rows, nor the chunks of a prefill, nor
    the layout of blocks, nor the number of threads changes a bit. float32 denormals count as zero.

    Any number of threads may use one backend; they take turns.
    """

    name = "native"
    batch_invariant_dtypes = frozenset(TYPES)
    copies_weights = True
    torch_threads: int | None = 1  # it has threads of its own

    def __init__(self, num_threads: int | None = None, instruction_set: str | None = None) -> None:
        """num_threads: by default the cores this process may use.

        instruction_set: one of instruction_sets(), by default the best.

        Raises ConfigError if the library or the instruction set is not there.
        """
        library = load_library()
        self.num_threads = usable_cores() if num_threads is None else num_threads
        self.instruction_set = instruction_set or instruction_sets()[0]
        if not 1 <= self.num_threads <= 1024:
            raise ConfigError(f"num_threads must be between 1 and 1024, but is {self.num_threads}")
        context = library.open(self.instruction_set.encode(), self.num_threads)
        if context is None:
            raise ConfigError(f"native kernels cannot start: {library.last_message()}")
        self._library = library
        self._context: int = context
        self._norm = library.norm
        self._rotary = library.rotary
        self._attend = library.attend
        self._results = Results()
        weakref.finalize(self, library.close, context)

    @staticmethod
    def available() -> tuple[bool, str]:
        """Whether the backend can be used here, and what it makes use of or why not."""
        try:
            names = instruction_sets()
        except ConfigError as error:
            return False, str(error)
        why_no_amx: bytes = load_library().why_no_amx()
        note = f"; AMX is not used: {why_no_amx.decode()}" if why_no_amx else ""
        return True, f"C++ on CPU with {names[0]}, {usable_cores()} threads{note}"

    @staticmethod
    def lacks_amx() -> bool:
        """Whether other libraries can use AMX here, but these kernels cannot."""
        state: int = load_library().amx_state()
        return state == _AMX_UNPROVEN

    def linear(
        self,
        weight: Weight | Sequence[Weight],
        bias: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
        quantization: Quantization | None = None,
        gate: Activation | None = None,
    ) -> Linear:
        """Pack weight [out, in] into panels; nothing of the given tensors is kept."""
        parts = parts_of(weight)
        stored = [q4_1_blocks(part) for part in parts if isinstance(part, StoredTensor)]
        if stored:
            if len(stored) < len(parts) or dtype is None:
                raise ValueError("blocks are not packed with numbers, nor without a dtype")
            size = parts[0].shape[1]
            return self._pack(stored, bias, STORED_FORMAT, size, dtype, gate)
        numbers = [part for part in parts if isinstance(part, Tensor)]
        fmt, size, dtype = FORMATS[quantization], numbers[0].shape[1], numbers[0].dtype
        return self._pack(numbers, bias, fmt, size, dtype, gate)

    def keeps(self, formats: Collection[WeightFormat], dtype: torch.dtype) -> bool:
        """Q4_1 and Q4_K, whose scales are rounded to Q4_1's, for bfloat16."""
        return dtype is torch.bfloat16 and all(fmt in (Q4_1, Q4_K) for fmt in formats)

    def _pack(
        self,
        parts: Sequence[Tensor],
        bias: Tensor | None,
        fmt: int,
        in_features: int,
        dtype: torch.dtype,
        gate: Activation | None,
    ) -> NativeLinear:
        return NativeLinear(
            self,
            self._library,
            self._context,
            self._results,
            parts,
            bias,
            fmt,
            in_features,
            dtype,
            gate,
        )

    def embed(
        self, token_ids: Tensor, table: Tensor, scale: float, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """(rms_norm(rows), rows) of a table [V, E]. Raises EngineError for an id outside of it."""
        [tokens], [vocab_size, size] = token_ids.shape, table.shape
        if token_ids.dtype is not torch.int64 or weight.numel() != size:
            raise ValueError(
                f"{token_ids.dtype} ids and a norm of {weight.numel()} do not fit a table of "
                f"{vocab_size} x {size}"
            )
        table = self._results.dense(table)
        out = self._results.new((tokens, size), table.dtype)
        residual = self._results.new((tokens, size), torch.float32)
        call = calls.EmbedCall(
            token_ids=self._results.dense(token_ids).data_ptr(),
            table=table.data_ptr(),
            weight=weight.data_ptr(),
            residual=residual.data_ptr(),
            out=out.data_ptr(),
            tokens=tokens,
            size=size,
            vocab_size=vocab_size,
            type=type_number(table.dtype),
            table_scale=scale,
            eps=eps,
        )
        if self._library.embed(self._context, call):
            raise self._error()
        return out, residual

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [..., E] normalised in float32, times weight (float32 [E]), in x's dtype."""
        x = self._results.dense(x)
        out = self._results.new(x.shape, x.dtype)
        self._normalise(x, None, weight, out, eps)
        return out

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """(rms_norm(x + residual), x + residual), written over x and residual."""
        if residual.dtype is not torch.float32 or not residual.is_contiguous():
            raise ValueError(f"the residual must be contiguous float32, but is {residual.dtype}")
        x = self._results.dense(x)
        self._normalise(x, residual, weight, x, eps)
        return x, residual

    def _normalise(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, out: Tensor, eps: float
    ) -> None:
        size, elements = weight.numel(), x.numel()
        if x.shape[-1] != size or (residual is not None and residual.numel() != elements):
            raise ValueError(f"a norm of {size} weights does not fit x of shape {tuple(x.shape)}")
        call = calls.NormCall(
            x=x.data_ptr(),
            residual=None if residual is None else residual.data_ptr(),
            weight=weight.data_ptr(),
            out=out.data_ptr(),
            tokens=elements // size,
            size=size,
            type=type_number(x.dtype),
            eps=eps,
        )
        if self._norm(self._context, call):
            raise self._error()

    def largest(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Per row of logits [L, V] its likeliest token (int64 [L]) and whether it is finite."""
        if logits.dtype is not torch.float32:
            raise ValueError(f"logits are float32, not {logits.dtype}")
        logits = logits.contiguous()
        rows, size = logits.shape
        indices = torch.empty(rows, dtype=torch.int64)
        finite = torch.empty(rows, dtype=torch.bool)
        call = calls.LargestCall(
            rows=logits.data_ptr(),
            indices=indices.data_ptr(),
            finite=finite.data_ptr(),
            count=rows,
            size=size,
        )
        if self._library.largest(self._context, call):
            raise self._error()
        return indices, finite

    def draw(self, logits: Tensor, knobs: SamplingKnobs) -> Tensor:
        """A token (int64 [L]) from each row of logits [L, V]."""
        if logits.dtype is not torch.float32:
            raise ValueError(f"logits are float32, not {logits.dtype}")
        logits = logits.contiguous()
        rows, size = logits.shape
        tokens = torch.empty(rows, dtype=torch.int64)
        call = calls.DrawCall(
            rows=logits.data_ptr(),
            temperature=knobs.temperature.data_ptr(),
            min_p=knobs.min_p.data_ptr(),
            top_k=knobs.top_k.data_ptr(),
            top_p=knobs.top_p.data_ptr(),
            draw=knobs.draw.data_ptr(),
            tokens=tokens.data_ptr(),
            count=rows,
            size=size,
        )
        if self._library.draw(self._context, call):
            raise self._error()
        return tokens

    def rotate_and_store(
        self,
        qkv: Tensor,
        shape: AttentionShape,
        norms: HeadNorms | None,
        rotary: RotaryTable,
        batch: FlatBatch,
        cache: LayerCache,
    ) -> Tensor:
        """Queries [T, H, D], normed and rotated; keys and values are in the cache then."""
        qkv = self._results.dense(qkv)
        tokens, width = qkv.shape
        heads, kv_heads, dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
        num_blocks, cached_heads, block_size, cached_dim = cache.keys.shape
        num_positions, half = rotary.cos.shape
        stored_heads = kv_heads if shape.stores else 0
        fits = width == (heads + 2 * stored_heads) * dim
        if not fits or (cached_heads, cached_dim) != (kv_heads, dim):
            raise ValueError(
                f"{heads} + 2 * {stored_heads} heads of {dim} do not fit projections of "
                f"{width} and a cache of {cached_heads} heads of {cached_dim}"
            )
        if not _fits(cache, qkv.dtype) or batch.positions.shape[0] != tokens:
            raise ValueError(f"the cache or batch does not fit {tokens} tokens of {qkv.dtype}")
        block_stride, scale_stride = block_strides(cache)
        queries = self._results.new((tokens, heads, dim), qkv.dtype)
        call = calls.RotaryCall(
            qkv=qkv.data_ptr(),
            queries=queries.data_ptr(),
            keys=cache.keys.data_ptr(),
            values=cache.values.data_ptr(),
            key_scales=_address(cache.key_scales),
            value_scales=_address(cache.value_scales),
            query_weight=None if norms is None else norms.query_weight.data_ptr(),
            key_weight=None if norms is None else norms.key_weight.data_ptr(),
            cos=rotary.cos.data_ptr(),
            sin=rotary.sin.data_ptr(),
            positions=batch.positions.data_ptr(),
            slots=batch.slots.data_ptr(),
            tokens=tokens,
            heads=heads,
            kv_heads=stored_heads,
            head_dim=dim,
            half=half,
            block_size=block_size,
            block_stride=block_stride,
            scale_stride=scale_stride,
            num_blocks=num_blocks,
            num_positions=num_positions,
            type=type_number(qkv.dtype),
            eps=0.0 if norms is None else norms.eps,
        )
        if self._rotary(self._context, call):
            raise self._error()
        return queries

    def plan_attention(self, batch: FlatBatch, block_size: int) -> AttentionPlan:
        """Check the batch; how it is cut into pieces is settled by the first layer."""
        return NativePlan(self._library, self._context, batch, block_size)

    def capture(self, compute: ComputeStep) -> ComputeStep:
        """Steps of few tokens are replayed."""
        return RecordedSteps(
            self._library, self._context, compute, self._results.keep_in, _plan_handle
        )

    def attend(
        self, queries: Tensor, cache: LayerCache, plan: AttentionPlan, shape: AttentionShape
    ) -> Tensor:
        """Attention of queries [T, H, D] over the paged cache; [T, H * D]."""
        assert isinstance(plan, NativePlan)
        queries = self._results.dense(queries)
        tokens, heads, dim = queries.shape
        num_blocks, kv_heads, block_size, _ = cache.keys.shape
        if tokens != plan.num_tokens or block_size != plan.block_size:
            raise ValueError(
                f"the plan is for {plan.num_tokens} tokens and blocks of {plan.block_size}, "
                f"but there are {tokens} and {block_size}"
            )
        if dim % 2 or heads % kv_heads or not _fits(cache, queries.dtype):
            raise ValueError(
                f"{heads} query heads of {dim} ({queries.dtype}) over {kv_heads} key heads "
                f"({cache.keys.dtype}) are not supported"
            )
        block_stride, scale_stride = block_strides(cache)
        out = self._results.new((tokens, heads * dim), queries.dtype)
        call = calls.AttendCall(
            plan=plan.handle,
            queries=queries.data_ptr(),
            keys=cache.keys.data_ptr(),
            values=cache.values.data_ptr(),
            key_scales=_address(cache.key_scales),
            value_scales=_address(cache.value_scales),
            out=out.data_ptr(),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=dim,
            block_stride=block_stride,
            scale_stride=scale_stride,
            num_blocks=num_blocks,
            window=_EVERYTHING if shape.window is None else shape.window,
            type=type_number(queries.dtype),
            scale=shape.scale,
            softcap=0.0 if shape.softcap is None else shape.softcap,
        )
        if self._attend(self._context, call):
            raise self._error()
        return out

    def dequantize(self, data: memoryview, fmt: WeightFormat, dtype: torch.dtype) -> Tensor:
        """See kernels.dequantize. Raises ValueError if data are not whole blocks of the format."""
        blocks, rest = divmod(len(data), fmt.block_bytes)
        if rest:
            raise ValueError(
                f"{len(data)} bytes are not blocks of {fmt.block_bytes} bytes ({fmt.name})"
            )
        if fmt.name not in _BLOCK_FORMATS:
            return dequantize_by_library(data, fmt, dtype)
        kernel_dtype = dtype if dtype in TYPES else torch.float32
        out = torch.empty(blocks * fmt.block_elements, dtype=kernel_dtype)
        call = calls.DequantizeCall(
            blocks=np.frombuffer(data, dtype=np.uint8).ctypes.data,
            out=out.data_ptr(),
            elements=out.numel(),
            type=TYPES[kernel_dtype],
            format=_BLOCK_FORMATS[fmt.name],
        )
        if self._library.dequantize(self._context, call):
            raise self._error()
        return out.to(dtype)

    def read_limit(self, memory: Tensor) -> float:
        """Bytes per second at which all threads read memory (whole 256 KiB), each byte once."""
        speed: float = self._library.read_limit(self._context, memory.data_ptr(), memory.nbytes)
        return speed

    def multiply_limit(self, dtype: torch.dtype) -> float:
        """Floating-point operations per second of all threads, multiplying in registers."""
        speed: float = self._library.multiply_limit(self._context, TYPES[dtype])
        return speed

    def _error(self) -> EngineError:
        return EngineError(f"native kernels: {self._library.last_message()}")


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _plan_handle(plan: AttentionPlan) -> int:
    assert isinstance(plan, NativePlan)
    return plan.handle


def instruction_sets() -> tuple[str, ...]:
    """Instruction sets that can be used here, best first. Raises ConfigError if none can."""
    names: bytes = load_library().instruction_sets()
    return tuple(names.decode().split(","))


def _fits(cache: LayerCache, dtype: torch.dtype) -> bool:
    """Whether the cache holds keys and values of a model in dtype, as they are or as codes."""
    codes = cache.key_scales is not None and cache.value_scales is not None
    return cache.keys.dtype is cache.values.dtype is (torch.int8 if codes else dtype)


def block_strides(cache: LayerCache) -> tuple[int, int]:
    """How far apart blocks are, in elements: those of keys and values, and those of scales (or 0).

    Raises ValueError if keys and values differ in it, or have gaps within a block.
    """
    strides = cache.keys.stride()
    _, _, size, dim = cache.keys.shape
    if strides != cache.values.stride() or strides[1:] != (size * dim, dim, 1):
        raise ValueError(
            f"blocks of keys and values must be equally far apart and without gaps, but their "
            f"strides are {strides} and {cache.values.stride()}"
        )
    if cache.key_scales is None or cache.value_scales is None:
        return strides[0], 0
    scale_strides = cache.key_scales.stride()
    if scale_strides != cache.value_scales.stride() or scale_strides[1:] != (size, 1):
        raise ValueError(
            f"blocks of scales must be equally far apart and without gaps, but their strides are "
            f"{scale_strides} and {cache.value_scales.stride()}"
        )
    return strides[0], scale_strides[0]
