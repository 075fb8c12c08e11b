"""Products in plain torch, on any device: their definition."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from loire.base.config import Quantization
from loire.base.lora import MOST_ADAPTERS
from loire.checkpoint.feed_forward import (
    Activation,
    ClampedSwiGLU,
    PlainActivation,
    Routing,
    is_gate,
)
from loire.checkpoint.formats import WeightFormat
from loire.kernels.block_formats import StoredTensor, has_fine_inputs, has_powers, rounds_inputs
from loire.kernels.dequantize import dequantize_on_host
from loire.kernels.experts import ReferenceExperts
from loire.kernels.interface import (
    AdapterRows,
    Expert,
    ExpertChunks,
    Experts,
    FlatBatch,
    Heads,
    Linear,
    LowRank,
    PackedAdapter,
    Ranks,
    Weight,
    parts_of,
)
from loire.kernels.quantization import multiply_rounded, quantize_weight
from loire.kernels.ranks import SummedLinear


def check_adapter_number(number: int) -> None:
    """What Linear.adapt() is given. Raises ValueError."""
    if not 0 <= number < MOST_ADAPTERS:
        raise ValueError(f"adapters have numbers from 0 to {MOST_ADAPTERS - 1}, not {number}")


def check_low_rank(
    parts: Sequence[LowRank], in_features: int, num_rows: int, dtype: torch.dtype
) -> None:
    """What Linear.pack_adapter() is given. num_rows: outputs before a gate. Raises ValueError."""
    for part in parts:
        rank, size = part.down.shape
        outputs, up_rank = part.up.shape
        fits = size == in_features and up_rank == rank and part.first >= 0
        if not fits or part.first + outputs > num_rows:
            raise ValueError(
                f"{outputs} x {up_rank} times {rank} x {size} from output {part.first} on does not "
                f"fit a weight of {num_rows} x {in_features}"
            )
        if not part.down.dtype is part.up.dtype is dtype:
            raise ValueError(
                f"{part.down.dtype} and {part.up.dtype} do not fit a weight for {dtype}"
            )


@dataclass(frozen=True, slots=True)
class LowRankParts:
    """See PackedAdapter: the parts as they are."""

    parts: tuple[LowRank, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes in memory."""
        return sum(part.down.nbytes + part.up.nbytes for part in self.parts)


class TorchLinear(ABC):
    """What products in torch have in common: adapters."""

    def __init__(self, out_features: int, in_features: int, dtype: torch.dtype) -> None:
        """dtype: of the inputs."""
        self.out_features = out_features
        self.in_features = in_features
        self.dtype = dtype
        self._adapters: dict[int, LowRankParts] = {}

    @property
    @abstractmethod
    def weight_bytes(self) -> int:
        """Bytes that one multiplication reads of it."""

    @abstractmethod
    def multiply(self, x: Tensor, *, wide: bool) -> Tensor:
        """[T, in] to [T, out], without adapters."""

    def __call__(self, x: Tensor, batch: FlatBatch | None = None, *, wide: bool = False) -> Tensor:
        """[T, in] to [T, out]."""
        adapters = None if batch is None else batch.adapters
        if adapters is None or not self._adapters:
            return self.multiply(x, wide=wide)
        result = self.multiply(x, wide=True)
        self._add_low_rank(result, x, adapters)
        return result if wide else result.to(x.dtype)

    def pack_adapter(self, parts: Sequence[LowRank]) -> LowRankParts:
        """See Linear.pack_adapter()."""
        check_low_rank(parts, self.in_features, self.out_features, self.dtype)
        return LowRankParts(tuple(parts))

    def adapt(self, number: int, adapter: PackedAdapter | None) -> None:
        """See Linear.adapt()."""
        check_adapter_number(number)
        self._adapters.pop(number, None)
        if adapter is not None:
            assert isinstance(adapter, LowRankParts), "another weight packed this"
            self._adapters[number] = adapter

    def _add_low_rank(self, result: Tensor, x: Tensor, rows: AdapterRows) -> None:
        """To result (float32), for the tokens that have an adapter alone."""
        for number, adapter in self._adapters.items():
            [tokens] = (rows.numbers == number).nonzero(as_tuple=True)
            if not len(tokens):
                continue
            # (All of them are not gathered and put back: of a step of training that is a share.)
            has_all = len(tokens) == len(x)
            inputs = (x if has_all else x[tokens]).float()
            added = torch.zeros(len(tokens), self.out_features, device=x.device)
            for part in adapter.parts:
                outputs = slice(part.first, part.first + len(part.up))
                added[:, outputs] += inputs @ part.down.float().T @ part.up.float().T
            if has_all:
                result += added
            else:
                result[tokens] += added


class ReferenceLinear(TorchLinear):
    """A weight as it is."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight.shape[0], weight.shape[1], weight.dtype)
        self.weight = weight
        self.bias = bias

    @property
    def weight_bytes(self) -> int:
        """Bytes that one multiplication reads of it."""
        return self.weight.numel() * self.weight.element_size()

    def multiply(self, x: Tensor, *, wide: bool) -> Tensor:
        """[T, in] to [T, out]."""
        result = F.linear(x, self.weight, self.bias)
        return result.float() if wide else result


class ReferenceQuantizedLinear(TorchLinear):
    """A weight in codes, multiplied in float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None, quantization: Quantization) -> None:
        super().__init__(weight.shape[0], weight.shape[1], weight.dtype)
        self._codes, self._scales = quantize_weight(weight, quantization)
        self._bits = 8 if quantization == "int8" else 4
        self._bias = None if bias is None else bias.float()

    @property
    def weight_bytes(self) -> int:
        """Bytes of the codes and scales, as the format packs them."""
        scale_bytes = 4 if self._bits == 8 else 2
        return self._codes.numel() * self._bits // 8 + self._scales.numel() * scale_bytes

    def multiply(self, x: Tensor, *, wide: bool) -> Tensor:
        """[T, in] to [T, out]."""
        weight = (self._codes.float() * self._scales[..., None]).flatten(1)[:, : self.in_features]
        return multiply_rounded(x, weight, self._bias, wide=wide)


class ReferenceStoredLinear(TorchLinear):
    """A weight in blocks, multiplied in float32."""

    def __init__(self, weight: StoredTensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(weight.shape[0], weight.shape[1], dtype)
        self.weight = weight
        self._bias = None if bias is None else bias.float()

    @property
    def weight_bytes(self) -> int:
        """Bytes of the blocks."""
        levels = self.weight.levels
        return self.weight.blocks.nbytes + (0 if levels is None else levels.nbytes)

    def multiply(self, x: Tensor, *, wide: bool) -> Tensor:
        """[T, in] to [T, out]."""
        values = self.weight.values_as_stored()
        given = x if self.weight.order is None else x[:, self.weight.order]
        if x.dtype is torch.float32 or not rounds_inputs(self.weight.format):
            result = F.linear(given.float(), values, self._bias)
            return result if wide else result.to(x.dtype)
        return multiply_rounded(
            given,
            values,
            self._bias,
            wide=wide,
            any_scale=has_powers(self.weight.format),
            fine=has_fine_inputs(self.weight.format),
        )

    def rows(self, indices: Tensor) -> Tensor:
        """float32 [T, in] of int64 [T]: rows of the weight."""
        return self.weight.rows(indices).values()


class StackedLinear(TorchLinear):
    """Products of the same inputs, their results side by side."""

    def __init__(self, parts: Sequence[TorchLinear]) -> None:
        outputs = sum(part.out_features for part in parts)
        super().__init__(outputs, parts[0].in_features, parts[0].dtype)
        self._parts = parts

    @property
    def weight_bytes(self) -> int:
        """Bytes that one multiplication reads of them."""
        return sum(part.weight_bytes for part in self._parts)

    def multiply(self, x: Tensor, *, wide: bool) -> Tensor:
        """[T, in] to [T, out]."""
        return torch.cat([part.multiply(x, wide=wide) for part in self._parts], dim=-1)


def merged(parts: Sequence[Weight]) -> list[Weight]:
    """Neighbours that are stored alike put together, so that few products are left."""
    found: list[Weight] = []
    for part in parts:
        last = found[-1] if found else None
        if isinstance(part, Tensor) and isinstance(last, Tensor):
            found[-1] = torch.cat([last, part])
        elif (
            isinstance(part, StoredTensor) and isinstance(last, StoredTensor) and part.lies_as(last)
        ):
            found[-1] = last.with_rows_of(part)
        else:
            found.append(part)
    return found


def activated(x: Tensor, activation: PlainActivation) -> Tensor:
    """The activation of a gate, element by element."""
    if activation == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


class GatedLinear:
    """A product, and what becomes of its two halves; of its results, where the activation is no
    gate."""

    def __init__(self, both: Linear, activation: Activation) -> None:
        self._both = both
        self._activation = activation
        self.dtype = both.dtype
        self.in_features = both.in_features
        self.out_features = both.out_features // (2 if is_gate(activation) else 1)

    @property
    def weight_bytes(self) -> int:
        """Bytes that one multiplication reads of it."""
        return self._both.weight_bytes

    def __call__(self, x: Tensor, batch: FlatBatch | None = None, *, wide: bool = False) -> Tensor:
        """[T, in] to [T, out]."""
        if wide:
            raise ValueError("gated results are not wide")
        if self._activation == "squared_relu":
            return F.relu(self._both(x, batch)).square()
        gate, up = self._both(x, batch).chunk(2, dim=-1)
        if isinstance(self._activation, ClampedSwiGLU):
            alpha, limit = self._activation.alpha, self._activation.limit
            gate, up = gate.float().clamp(max=limit), up.float().clamp(-limit, limit)
            return ((up + 1) * (gate * torch.sigmoid(alpha * gate))).to(x.dtype)
        return activated(gate, self._activation) * up

    def pack_adapter(self, parts: Sequence[LowRank]) -> PackedAdapter:
        """See Linear.pack_adapter()."""
        return self._both.pack_adapter(parts)

    def adapt(self, number: int, adapter: PackedAdapter | None) -> None:
        """See Linear.adapt()."""
        self._both.adapt(number, adapter)


def gated(linear: Linear, gate: Activation | None) -> Linear:
    """linear, or with a gate what LinearKernels.pack() gives."""
    return linear if gate is None else GatedLinear(linear, gate)


class ReferenceHeads:
    """See kernels.interface.Heads."""

    def __init__(self, products: Sequence[Linear]) -> None:
        self._products = tuple(products)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all of them."""
        return sum(product.weight_bytes for product in self._products)

    def __call__(
        self, x: Tensor, out: Tensor | None = None, batch: FlatBatch | None = None
    ) -> Tensor:
        """Of x [T, H, in]; [T, H, out], in out if it is given."""
        if out is None:
            out = x.new_empty((*x.shape[:2], self._products[0].out_features))
        for head, product in enumerate(self._products):
            out[:, head] = product(x[:, head].contiguous(), batch)
        return out


class ReferenceLinearKernels:
    """See kernels.interface.LinearKernels."""

    copies_weights = False

    def keeps(self, formats: Collection[WeightFormat], dtype: torch.dtype) -> bool:
        """None: pack() takes all of them, but takes them apart each time, which is slow."""
        return False

    def pack(
        self,
        weight: Weight | Sequence[Weight],
        bias: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
        quantization: Quantization | None = None,
        gate: Activation | None = None,
    ) -> Linear:
        """Keep weight [out, in] as it is, as codes, or in its blocks."""
        parts = merged(parts_of(weight))
        biases: Sequence[Tensor | None] = [None] * len(parts)
        if bias is not None:
            biases = bias.split([part.shape[0] for part in parts])
        pairs = zip(parts, biases, strict=True)
        linears = [self._one_linear(part, own, dtype, quantization) for part, own in pairs]
        return gated(linears[0] if len(linears) == 1 else StackedLinear(linears), gate)

    def _one_linear(
        self,
        weight: Weight,
        bias: Tensor | None,
        dtype: torch.dtype | None,
        quantization: Quantization | None,
    ) -> TorchLinear:
        if isinstance(weight, StoredTensor):
            if dtype is None:
                raise ValueError("a weight in blocks does not say what dtype its inputs have")
            return ReferenceStoredLinear(weight, bias, dtype)
        if quantization is not None:
            return ReferenceQuantizedLinear(weight, bias, quantization)
        return self.dense_linear(weight, bias)

    def dense_linear(self, weight: Tensor, bias: Tensor | None) -> TorchLinear:
        """Keep weight [out, in] as it is."""
        return ReferenceLinear(weight, bias)

    def experts(
        self,
        experts: Sequence[Expert | None],
        routing: Routing,
        bias: Tensor | None = None,
        scales: Tensor | None = None,
        chunks: ExpertChunks | None = None,
    ) -> Experts:
        """Expert by expert."""
        return ReferenceExperts(experts, routing, bias, scales, chunks)

    def heads(self, products: Sequence[Linear]) -> Heads:
        """Head by head."""
        return ReferenceHeads(products)

    def summed(self, products: Sequence[Linear], bias: Tensor | None, ranks: Ranks) -> Linear:
        """Chunk by chunk."""
        return SummedLinear(products, bias, ranks)

    def dequantize(self, data: memoryview, fmt: WeightFormat, dtype: torch.dtype) -> Tensor:
        """On the host, whatever device computes the model."""
        return dequantize_on_host(data, fmt, dtype)
