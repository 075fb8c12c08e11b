"""The KV tensors, made once at start."""

from collections.abc import Sequence

import torch

from loire.checkpoint.description import ModelDescription
from loire.kernels.interface import LayerCache


class KVCache:
    """Keys and values of all layers, each [num_blocks, num_kv_heads, block_size, head_dim].

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
        shape = (num_blocks, description.num_kv_heads, block_size, description.head_dim)
        self.block_size = block_size
        self.layers = tuple(
            LayerCache(
                torch.empty(shape, dtype=dtype, device=device),
                torch.empty(shape, dtype=dtype, device=device),
            )
            for _ in range(description.num_layers)
        )

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, all sources read before any target is written."""
        if not copies:
            return
        device = self.layers[0].keys.device
        sources = torch.tensor([source for source, _ in copies], device=device)
        targets = torch.tensor([target for _, target in copies], device=device)
        for layer in self.layers:
            layer.keys[targets] = layer.keys[sources]
            layer.values[targets] = layer.values[sources]
