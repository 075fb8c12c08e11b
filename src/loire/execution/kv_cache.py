"""The KV tensors, made once at start."""

from collections.abc import Sequence

import torch

from loire.checkpoint.description import ModelDescription
from loire.checkpoint.mixers import CacheNeed
from loire.kernels.interface import LayerCache


class KVCache:
    """Keys and values of all layers, each [num_blocks, num_kv_heads, block_size, head_dim].

    A layer that reads another's has that one's, a layer that keeps nothing has empty ones. dtype:
    int8 keeps codes, with a float32 scale per token and head.

    The memory is not written at start: on a CPU the operating system gives its pages as blocks
    are first used.
    """

    def __init__(
        self,
        description: ModelDescription,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_size = block_size

        def layer(need: CacheNeed) -> LayerCache:
            shape = (num_blocks, need.num_vectors // 2, block_size, need.vector_size)
            keys = torch.empty(shape, dtype=dtype, device=device)
            values = torch.empty(shape, dtype=dtype, device=device)
            if dtype is not torch.int8:
                return LayerCache(keys, values)
            scales = torch.empty((2, *shape[:-1]), device=device)
            return LayerCache(keys, values, scales[0], scales[1])

        nothing = LayerCache(torch.empty(0), torch.empty(0))
        own = [nothing if need is None else layer(need) for need in description.caches]
        self._kept = [cache for cache in own if cache is not nothing]
        self.layers = tuple(own[owner] for owner in description.cache_owners)

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, all sources read before any target is written."""
        if not copies:
            return
        device = self._kept[0].keys.device
        sources = torch.tensor([source for source, _ in copies], device=device)
        targets = torch.tensor([target for _, target in copies], device=device)
        for layer in self._kept:
            for tensor in (layer.keys, layer.values, layer.key_scales, layer.value_scales):
                if tensor is not None:
                    tensor[targets] = tensor[sources]
