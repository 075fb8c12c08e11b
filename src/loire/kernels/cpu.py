"""CPU backend on torch's own operators, with weights packed once and few calls per layer.

Stock F.linear packs a bfloat16 weight again on each call; oneDNN's packed form is made at load.
Decode rows are attended together, grouped by length so that little is padded; prefill rows one by
one.
"""

from collections import defaultdict
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from loire.kernels.interface import (
    AttentionPlan,
    AttentionShape,
    Backend,
    FlatBatch,
    LayerCache,
)
from loire.kernels.ranks import join
from loire.kernels.reference import no_capture
from loire.kernels.reference_attention import (
    ReferenceAttention,
    attend_row,
    first_seen,
    gather_context,
    softmax_with_sinks,
    visible,
)
from loire.kernels.reference_linear import ReferenceLinearKernels, TorchLinear
from loire.kernels.reference_pointwise import ReferencePointwise
from loire.kernels.reference_recurrent import ReferenceRecurrent
from loire.kernels.reference_transfers import ReferenceTransfers
from loire.kernels.sampling import ReferenceSampling


class PackedLinear(TorchLinear):
    """A bfloat16 weight in oneDNN's packed layout; the plain weight is not kept."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight.shape[0], weight.shape[1], weight.dtype)
        self.bias = bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)

    @property
    def weight_bytes(self) -> int:
        """Bytes that one multiplication reads of it."""
        return self.out_features * self.in_features * 2

    def multiply(self, x: Tensor, *, wide: bool) -> Tensor:
        """[T, in] to [T, out]."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._packed, self.bias, "none", [], ""
        )
        return result.float() if wide else result


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Rows of one query each and of similar context length."""

    tokens: Tensor
    """int64 [B]: index of each row's token in the flat batch."""
    blocks: Tensor
    """int64 [B, M]: block tables cut to the group's longest."""
    positions: Tensor
    """int64 [B, 1]: position of the query."""
    tail_rows: Tensor
    """int64 [X], with tail_slots: where the gathered context holds what is not the row's."""
    tail_slots: Tensor


@dataclass(frozen=True, slots=True)
class PrefillRow:
    """A row of several queries."""

    first: int
    query_len: int
    context_len: int
    block_table: Tensor


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """Rows sorted into those that are attended together and those that are not."""

    groups: tuple[DecodeGroup, ...]
    prefills: tuple[PrefillRow, ...]
    masks: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict)
    """Masks that the layers of this step share, by query length, context length and window."""


class CpuLinearKernels(ReferenceLinearKernels):
    """See kernels.interface.LinearKernels."""

    def dense_linear(self, weight: Tensor, bias: Tensor | None) -> TorchLinear:
        """Pack weight [out, in] once if it is bfloat16."""
        if weight.dtype == torch.bfloat16 and can_pack():
            return PackedLinear(weight, bias)
        return super().dense_linear(weight, bias)


class CpuPointwise(ReferencePointwise):
    """See kernels.interface.PointwiseKernels."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """As the reference, in one operator where torch has one."""
        if x.dtype == torch.float32:
            return F.rms_norm(x, (x.shape[-1],), weight, eps)
        return super().rms_norm(x, weight, eps)


class CpuAttention(ReferenceAttention):
    """See kernels.interface.AttentionKernels."""

    def plan(self, batch: FlatBatch, block_size: int) -> AttentionPlan:
        """Group decode rows whose contexts span similar numbers of blocks."""
        by_length: defaultdict[int, list[int]] = defaultdict(list)
        prefills = []
        first = 0
        starts = []
        for row, (query_len, context_len) in enumerate(
            zip(batch.host_query_lens, batch.host_context_lens, strict=True)
        ):
            starts.append(first)
            if query_len == 1:
                by_length[_length_class(-(-context_len // block_size))].append(row)
            else:
                prefills.append(PrefillRow(first, query_len, context_len, batch.block_tables[row]))
            first += query_len
        groups = tuple(
            _decode_group(batch, rows, starts, block_size) for rows in by_length.values()
        )
        return CpuPlan(groups, tuple(prefills))

    def attend(
        self, queries: Tensor, cache: LayerCache, plan: AttentionPlan, shape: AttentionShape
    ) -> Tensor:
        """Decode rows group by group, prefill rows one by one."""
        assert isinstance(plan, CpuPlan)
        output = torch.empty_like(queries)
        for group in plan.groups:
            output[group.tokens] = _attend_group(queries[group.tokens], cache, group, shape)
        for row in plan.prefills:
            rows = slice(row.first, row.first + row.query_len)
            output[rows] = _attend_prefill(queries[rows], cache, row, plan, shape)
        return output.flatten(1)


class CpuBackend(Backend):
    """See kernels.interface.Backend."""

    def __init__(self) -> None:
        super().__init__(
            name="cpu",
            numbers=f"torch {torch.__version__}{', packed' * can_pack()}",
            linear=CpuLinearKernels(),
            attention=CpuAttention(),
            recurrent=ReferenceRecurrent(),
            pointwise=CpuPointwise(),
            sampling=ReferenceSampling(),
            transfers=ReferenceTransfers(),
            capture=no_capture,
            join=join,
        )


def can_pack() -> bool:
    """Whether oneDNN can hold packed bfloat16 weights here."""
    return torch.backends.mkldnn.is_available() and bool(
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _length_class(num_blocks: int) -> int:
    """Eighths of a power of two: rows of a class differ by at most an eighth in length."""
    step = max(1, 1 << max(num_blocks.bit_length() - 4, 0))
    return -(-num_blocks // step) * step


def _decode_group(
    batch: FlatBatch, rows: list[int], starts: list[int], block_size: int
) -> DecodeGroup:
    lengths = torch.tensor([batch.host_context_lens[row] for row in rows])
    num_blocks = -(-int(lengths.max()) // block_size)
    tables = batch.block_tables[rows][:, :num_blocks].long()
    stale = torch.arange(num_blocks * block_size)[None] >= lengths[:, None]
    tail_rows, tail_slots = stale.nonzero(as_tuple=True)
    return DecodeGroup(
        tokens=torch.tensor([starts[row] for row in rows]),
        blocks=tables,
        positions=lengths[:, None] - 1,
        tail_rows=tail_rows,
        tail_slots=tail_slots,
    )


def _attend_group(
    queries: Tensor, cache: LayerCache, group: DecodeGroup, shape: AttentionShape
) -> Tensor:
    num_blocks, size = group.blocks.shape[1], cache.keys.shape[2]
    first = 0
    if shape.window is not None:
        first = max(int(group.positions.min()) - shape.window + 1, 0) // size
    tables = group.blocks[:, first:]

    def gather(blocks: Tensor, scales: Tensor | None) -> Tensor:
        found = _gather_heads(blocks, tables)
        if scales is not None:
            found = found * _gather_heads(scales, tables)[..., None]
        return found.flatten(2, 3).to(queries.dtype)

    keys = gather(cache.keys, cache.key_scales)
    is_latent = cache.values is cache.keys
    values = keys if is_latent else gather(cache.values, cache.value_scales)
    slots = torch.arange(first * size, num_blocks * size)[None]
    mask = slots <= group.positions
    rows, unseen = group.tail_rows, group.tail_slots
    if shape.window is not None:
        mask &= slots > group.positions - shape.window
        rows, unseen = (~mask).nonzero(as_tuple=True)
    # What a row does not see may be anything, NaN included: 0 * NaN would reach it.
    keys[rows, :, unseen] = 0
    values[rows, :, unseen] = 0
    grouped = queries.unflatten(1, (shape.num_kv_heads, -1))
    if shape.softcap is None and shape.sinks is None:
        attended = F.scaled_dot_product_attention(
            grouped, keys, values, attn_mask=mask[:, None, None], scale=shape.scale
        )
    else:
        scores = grouped.float() @ keys.float().transpose(-1, -2) * shape.scale
        if shape.softcap is not None:
            scores = shape.softcap * torch.tanh(scores / shape.softcap)
        scores = scores.masked_fill(~mask[:, None, None], float("-inf"))
        weights = softmax_with_sinks(scores[..., None, :], shape)[..., 0, :]
        attended = (weights @ values.float()).to(queries.dtype)
    return attended.flatten(1, 2)


def _gather_heads(blocks: Tensor, tables: Tensor) -> Tensor:
    """[B, K, M, S, ...] of blocks [N, K, S, ...] and tables [B, M]."""
    num_blocks, heads, *inner = blocks.shape
    stride, head_stride = blocks.stride()[:2]
    if stride % head_stride:
        return blocks[tables].transpose(1, 2)
    # One gather in which the heads come before the blocks: no second copy to reorder.
    apart = stride // head_stride
    lines = blocks.as_strided(
        ((num_blocks - 1) * apart + heads, *inner), (head_stride, *blocks.stride()[2:])
    )
    index = tables[:, None] * apart + torch.arange(heads)[:, None]
    return lines.index_select(0, index.flatten()).view(*index.shape, *inner)


def _attend_prefill(
    queries: Tensor, cache: LayerCache, row: PrefillRow, plan: CpuPlan, shape: AttentionShape
) -> Tensor:
    first = first_seen(row.query_len, row.context_len, shape.window, cache.keys.shape[2])
    gathered = gather_context(cache, row.block_table, row.context_len, first)
    keys, values = (tensor.to(queries.dtype) for tensor in gathered)
    if shape.softcap is not None or shape.sinks is not None:
        return attend_row(queries, keys, values, shape, row.context_len)
    whole = row.query_len == row.context_len and (
        shape.window is None or shape.window >= row.context_len
    )
    mask = None
    if not whole:
        key = (row.query_len, row.context_len, shape.window)
        mask = plan.masks.get(key)
        if mask is None:
            mask = plan.masks[key] = visible(*key, queries.device)
        mask = mask[:, first:]
    attended = F.scaled_dot_product_attention(
        queries.transpose(0, 1)[None],
        keys[None],
        values[None],
        attn_mask=mask,
        is_causal=whole,
        scale=shape.scale,
        enable_gqa=True,
    )
    return attended[0].transpose(0, 1)
