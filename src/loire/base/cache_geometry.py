"""How the layers of a model share KV memory: a pool of pages, in which each cache group has blocks.

Layers that keep the same tokens are a group, and a sequence has one block table per group: layers
that see everything, layers with a window, layers with a state instead of tokens. A block of any
group fills one page, so that a page can go from one group to another; where a group keeps fewer
bytes per token, its blocks hold more tokens.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, lcm
from typing import Literal

from loire.base.errors import ConfigError

CacheKind = Literal["full", "window", "latent", "state"]

MOST_PADDING = 0.1
"""Share of a page that a group may leave unused."""
MOST_BLOCKS_IN_ONE = 8
"""A group's blocks have at most so many times the tokens of the finest ones: prefixes are found in
units that all groups share."""
MOST_PARTS = 8
"""Groups that layers of one kind may be cut into."""
ALIGNMENT = 64
"""Bytes: where a layer's part of a page begins."""


@dataclass(frozen=True, slots=True)
class LayerNeed:
    """What one layer keeps: bytes per token, or a state of some arrays."""

    kind: CacheKind
    bytes_per_token: int = 0
    window: int | None = None
    """Of kind "window": tokens that are read again, the newest included."""
    state_parts: tuple[int, ...] = ()
    """Bytes of a state's arrays. Each lies in one page, those of a layer perhaps in several."""


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Layers whose blocks have one block table."""

    kind: CacheKind
    layers: tuple[int, ...]
    block_size: int = 0
    """Tokens per block; a state has none."""
    bytes_per_token: int = 0
    """Of all its layers."""
    window: int | None = None
    state_bytes: int = 0
    """Of all its layers, for one sequence."""
    pages_per_state: int = 0

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold the first num_tokens positions, those behind a window included."""
        return -(-num_tokens // self.block_size) if self.block_size else 0

    def first_needed(self, position: int) -> int:
        """First block that holds anything which the token at this position, or a later one, sees.

        Nothing before it is read again.
        """
        if self.window is None or self.block_size == 0:
            return 0
        return max(position - self.window + 1, 0) // self.block_size

    def most_held(self, num_tokens: int, most_ahead: int) -> int:
        """Pages that a sequence of num_tokens holds at most at a time, if at most so many of its
        tokens are being computed."""
        if self.block_size == 0:
            return self.pages_per_state if num_tokens else 0
        needed = self.blocks_for(num_tokens)
        if self.window is None:
            return needed
        return min(needed, self.blocks_for(self.window + most_ahead) + 1)


@dataclass(frozen=True, slots=True)
class CacheGeometry:
    """The groups of a model and the page they share."""

    groups: tuple[CacheGroup, ...]
    page_bytes: int
    block_size: int
    """Tokens of the finest block, in which prefixes are hashed."""

    @property
    def unit(self) -> int:
        """Tokens: prefixes are found again up to multiples of it, where all groups' blocks end."""
        return lcm(*(group.block_size or self.block_size for group in self.groups))

    @property
    def has_states(self) -> bool:
        """Whether some layers keep a state instead of tokens."""
        return any(group.kind == "state" for group in self.groups)

    @property
    def padding(self) -> float:
        """Share of a page that is unused, in the group where it is the largest."""
        return max(1 - _used(group, self.page_bytes) for group in self.groups)

    def pages_for(self, num_tokens: int, most_ahead: int) -> int:
        """Pages that a sequence of num_tokens holds at most at a time: see CacheGroup.most_held."""
        return sum(group.most_held(num_tokens, most_ahead) for group in self.groups)

    def longest_in(self, num_pages: int, most_ahead: int, limit: int) -> int:
        """Tokens of the longest sequence in num_pages: a multiple of block_size up to limit."""
        low, high = 0, limit // self.block_size
        while low < high:
            middle = (low + high + 1) // 2
            if self.pages_for(middle * self.block_size, most_ahead) <= num_pages:
                low = middle
            else:
                high = middle - 1
        return low * self.block_size


def one_group(block_size: int, bytes_per_token: int = 1, num_layers: int = 1) -> CacheGeometry:
    """Of a model whose layers all see everything."""
    group = CacheGroup("full", tuple(range(num_layers)), block_size, bytes_per_token)
    return CacheGeometry((group,), block_size * bytes_per_token, block_size)


def cache_geometry(needs: Sequence[LayerNeed | None], block_size: int) -> CacheGeometry:
    """The groups of layers that need this (None: nothing of their own), with blocks of at least
    block_size tokens.

    Kinds whose bytes per token do not fit into common pages with little padding are cut into groups
    of about equal numbers of layers, as few as possible. Raises ConfigError where that cannot be.
    """
    kinds: dict[tuple[CacheKind, int | None], list[int]] = {}
    for layer, need in enumerate(needs):
        if need is not None:
            kinds.setdefault((need.kind, need.window), []).append(layer)
    tokens = {kind: layers for kind, layers in kinds.items() if kind[0] != "state"}
    states = [layer for kind, layers in kinds.items() if kind[0] == "state" for layer in layers]
    best: CacheGeometry | None = None
    least = math.inf
    for parts in _cuts([len(layers) for layers in tokens.values()]):
        cut = [
            (kind, part)
            for (kind, layers), count in zip(tokens.items(), parts, strict=True)
            for part in _parts(layers, count)
        ]
        found = _fit(needs, cut, states, block_size)
        # (What the last page of a state leaves unused is no reason to cut the others.)
        padding = _padding_of_tokens(found)
        if padding < least:
            best, least = found, padding
        if least <= MOST_PADDING:
            break
    if best is None:
        raise ConfigError("no layer keeps the KV of tokens: there is nothing to page")
    return best


def _cuts(counts: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Into how many groups each kind is cut: the fewest groups in all first."""
    ranges = [range(1, min(count, MOST_PARTS) + 1) for count in counts]
    if ranges:
        yield from sorted(product(*ranges), key=lambda cut: (sum(cut), cut))


def _parts(layers: Sequence[int], count: int) -> list[tuple[int, ...]]:
    """Consecutive parts whose lengths differ by one at most."""
    size = len(layers)
    return [tuple(layers[size * i // count : size * (i + 1) // count]) for i in range(count)]


def _fit(
    needs: Sequence[LayerNeed | None],
    cut: Sequence[tuple[tuple[CacheKind, int | None], tuple[int, ...]]],
    states: Sequence[int],
    block_size: int,
) -> CacheGeometry:
    """Groups in pages that the largest of them fills with blocks of block_size tokens."""

    def bytes_of(layers: Sequence[int]) -> int:
        return sum(need.bytes_per_token for layer in layers if (need := needs[layer]) is not None)

    most = max(bytes_of(layers) for _, layers in cut)
    state_sizes = [
        size for layer in states if (need := needs[layer]) is not None for size in need.state_parts
    ]
    # Each of them lies in one page.
    finest = block_size * max(1, ceil(max(state_sizes, default=0) / (most * block_size)))
    page_bytes = most * finest
    groups = [
        CacheGroup(
            kind=kind,
            layers=layers,
            block_size=min(page_bytes // (bytes_of(layers) * finest), MOST_BLOCKS_IN_ONE) * finest,
            bytes_per_token=bytes_of(layers),
            window=window,
        )
        for (kind, window), layers in cut
    ]
    page_bytes = max(_aligned_bytes(needs, group) for group in groups)
    if states:
        groups.append(
            CacheGroup(
                kind="state",
                layers=tuple(states),
                state_bytes=sum(state_sizes),
                pages_per_state=state_places(state_sizes, page_bytes)[-1][0] + 1,
            )
        )
    return CacheGeometry(tuple(groups), page_bytes, finest)


def _aligned_bytes(needs: Sequence[LayerNeed | None], group: CacheGroup) -> int:
    """Of a block, each layer's part of it aligned."""
    sizes = [group.block_size * n.bytes_per_token for i in group.layers if (n := needs[i])]
    return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)


def state_places(sizes: Sequence[int], page_bytes: int) -> list[tuple[int, int]]:
    """Where arrays of so many bytes lie in a sequence's slot, in order and none in two pages: the
    page, and bytes from there."""
    places: list[tuple[int, int]] = []
    page, used = 0, 0
    for size in sizes:
        aligned = -(-size // ALIGNMENT) * ALIGNMENT
        if used + aligned > page_bytes:
            page, used = page + 1, 0
        places.append((page, used))
        used += aligned
    return places


def _padding_of_tokens(geometry: CacheGeometry) -> float:
    groups = [group for group in geometry.groups if group.kind != "state"]
    return max(1 - _used(group, geometry.page_bytes) for group in groups)


def _used(group: CacheGroup, page_bytes: int) -> float:
    if group.kind == "state":
        return group.state_bytes / (group.pages_per_state * page_bytes)
    return group.block_size * group.bytes_per_token / page_bytes
