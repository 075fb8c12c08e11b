"""The KV memory, made once at start: a pool of pages, and where in them the layers keep theirs."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from loire.base.cache_geometry import CacheGeometry, CacheGroup, state_places
from loire.checkpoint.description import ModelDescription
from loire.kernels.interface import AttentionKernels, LayerCache, StateCache, StatePlaces


class KVCache:
    """Pages of one size; a layer's keys and values lie in those of its cache group.

    Little of the memory is written at start: on a CPU the operating system gives its pages as
    blocks are first used.
    """

    def __init__(
        self,
        description: ModelDescription,
        geometry: CacheGeometry,
        num_pages: int,
        dtype: torch.dtype,
        kernels: AttentionKernels,
        device: torch.device,
    ) -> None:
        """dtype: of keys and values; int8 keeps codes, with a float32 scale per token and head."""
        self.geometry = geometry
        self.pages = kernels.new_pages(num_pages, geometry.page_bytes, device)
        """uint8 [num_pages, page_bytes]."""
        caches: dict[int, LayerCache | StateCache] = {}
        for index, group in enumerate(geometry.groups):
            if group.kind == "state":
                caches |= self._states(description, index, group)
                continue
            offset = 0
            for layer in group.layers:
                need = description.caches[layer]
                assert need is not None, "a layer without a cache is in a group"
                is_latent = need.kind == "latent"
                heads = need.num_vectors if is_latent else need.num_vectors // 2
                shape = (heads, group.block_size, need.vector_size, dtype)
                cache = kernels.layer_cache(self.pages, offset, *shape, is_latent=is_latent)
                caches[layer] = replace(cache, group=index)
                offset += kernels.layer_bytes(*shape, is_latent=is_latent)
        nothing = LayerCache(torch.empty(0, device=device), torch.empty(0, device=device))
        self.layers = tuple(caches.get(layer, nothing) for layer in range(description.num_layers))
        """By layer; of one that keeps nothing, nothing."""

    def _states(
        self, description: ModelDescription, index: int, group: CacheGroup
    ) -> dict[int, StateCache]:
        """Of each layer of a state group, where its arrays lie in a slot."""
        needs = {
            layer: need for layer in group.layers if (need := description.caches[layer]) is not None
        }
        sizes = [size for need in needs.values() for size in need.state_parts]
        places = iter(state_places(sizes, self.geometry.page_bytes))
        return {
            layer: StateCache(
                self.pages,
                tuple(
                    StatePlaces(part.shape, tuple(next(places) for _ in range(part.count)))
                    for part in need.state
                ),
                index,
            )
            for layer, need in needs.items()
        }

    def touch(self, num_tokens: int) -> None:
        """Write to the pages that a first step of so many tokens takes, so that it does not wait
        for the system."""
        self.pages[: self.geometry.pages_for(num_tokens, num_tokens)].zero_()

    def copy(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy (source, target) pages, all sources read before any target is written."""
        if copies:
            sources, targets = torch.tensor(copies, device=self.pages.device).unbind(1)
            self.pages[targets] = self.pages[sources]

    def zero(self, pages: Sequence[int]) -> None:
        """Fill pages with zeros."""
        if pages:
            self.pages[torch.tensor(pages, device=self.pages.device)] = 0
