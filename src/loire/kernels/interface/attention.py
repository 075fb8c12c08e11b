"""Attention over the paged KV cache, and how that lies in memory."""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from loire.kernels.interface.batch import FlatBatch


@dataclass(frozen=True, slots=True)
class LayerCache:
    """KV of one layer, in blocks. Memory that no sequence wrote holds anything, NaN included.

    A block has no gaps, but blocks may lie apart (stride(0)), as where a page of memory holds those
    of several layers: keys and values then equally far, key and value scales too. Layers may differ
    in S.
    """

    keys: Tensor
    """[N, K, S, D] in the model's dtype, or codes (int8) as loire.kernels.quantization defines
    them; rotated."""
    values: Tensor
    """[N, K, S, D] of the same dtype; the same tensor as keys where they are latents."""
    key_scales: Tensor | None = None
    """float32 [N, K, S]: of codes."""
    value_scales: Tensor | None = None
    """float32 [N, K, S]: of codes."""
    group: int = 0
    """Its cache group: which of a step's batches and plans go with it."""


@dataclass(frozen=True, slots=True)
class RotaryTable:
    """cos and sin by position, float32 [max_model_len, rotary_dim / 2], attention factor included.

    Dimension i is paired with i + rotary_dim / 2 (the layout of Hugging Face checkpoints).
    """

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """RMSNorm over each head of queries and keys, before the rotation (Qwen3, Gemma 3), perhaps of
    values too (Gemma 4)."""

    query_weight: Tensor
    """float32 [D], offset included."""
    key_weight: Tensor
    """float32 [D], offset included."""
    eps: float
    values: bool = False
    """Whether values are normalised too, without a weight."""


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What a layer's attention is, apart from the batch."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    """A token sees this many latest positions, itself included; None is all."""
    softcap: float | None = None
    values_are_keys: bool = False
    """Whether values are the keys before norm and rotation, so that they need no product."""
    sinks: Tensor | None = field(default=None, compare=False)
    """float32 [H]: a score of each query head that its softmax has beside those of the keys, and no
    value comes with."""
    stores: bool = True
    """False: keys and values are another layer's, and rotate_and_store() gets queries alone."""


class AttentionPlan(Protocol):
    """Whatever a device works out once per step for all layers."""


class AttentionKernels(Protocol):
    """What reads and writes the KV cache."""

    def new_pages(self, count: int, page_bytes: int, device: torch.device) -> Tensor:
        """A pool of pages, uint8 [count, page_bytes], that nothing is written to yet."""
        ...

    def layer_bytes(
        self,
        num_kv_heads: int,
        block_size: int,
        head_dim: int,
        dtype: torch.dtype,
        *,
        is_latent: bool = False,
    ) -> int:
        """Bytes of a block of one layer: its part of a page. dtype: of the cache. is_latent: values
        are the keys as they are kept."""
        ...

    def layer_cache(
        self,
        pages: Tensor,
        offset: int,
        num_kv_heads: int,
        block_size: int,
        head_dim: int,
        dtype: torch.dtype,
        *,
        is_latent: bool = False,
    ) -> LayerCache:
        """The KV of one layer in a pool of pages (uint8 [N, page bytes]), as views.

        A block is the layer_bytes() of its page from offset on, a multiple of 64.
        """
        ...

    def rotate_and_store(
        self,
        qkv: Tensor,
        shape: AttentionShape,
        norms: HeadNorms | None,
        rotary: RotaryTable,
        batch: FlatBatch,
        cache: LayerCache,
    ) -> Tensor:
        """Split qkv [T, (H + 2 * K) * D]; norm and rotate queries and keys; store keys, values.

        Where shape.values_are_keys, qkv is [T, (H + K) * D]. Where shape.stores is false, it is
        [T, H * D] and nothing is stored.

        Returns the queries [T, H, D]. Writes cache at batch.slots. May overwrite qkv.
        """
        ...

    def store_latents(
        self,
        latents: Tensor,
        turned: Tensor,
        weight: Tensor,
        eps: float,
        rotary: RotaryTable,
        batch: FlatBatch,
        cache: LayerCache,
    ) -> Tensor:
        """Store one vector per token, [R + L], that is key and value of all heads: the rotated key,
        then the normed latent (latent attention).

        latents: [T, L + R], the latent, then the key. weight: float32 [L], of the latent's norm.
        turned: [T, H * R], what is rotated of queries, rows perhaps apart. R is the rotary's.

        Returns queries [T, H, R + L], of which the first R dimensions are set; the caller sets the
        others. Writes cache at batch.slots.
        """
        ...

    def plan(self, batch: FlatBatch, block_size: int) -> AttentionPlan:
        """Once per step: what attend() needs of the batch in every layer of that block size."""
        ...

    def attend(
        self, queries: Tensor, cache: LayerCache, plan: AttentionPlan, shape: AttentionShape
    ) -> Tensor:
        """Causal attention of queries [T, H, D] over the paged cache; [T, H * D].

        Softmax in float32. A row reads nothing but its own context: no stale value, be it NaN,
        can reach it.
        """
        ...
