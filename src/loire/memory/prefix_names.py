"""Which prefixes can be gone on from here, by short names: for fronts that place requests by them.

A name stands for all tokens up to the end of a block. Where a model keeps states, it can go on at a
snapshot alone, so these are told; where layers have windows, the blocks in them are what is missing
first. Names tell nothing of tokens or salts, so those of private sequences are told, too.
"""

from collections.abc import Iterable, Sequence

from loire.base.cache_geometry import CacheGeometry

NAME_BYTES = 8
"""Of a block's hash that are told: two of 2**32 blocks rarely share them, and the worst that
follows is a request in the wrong place."""


class PrefixNames:
    """Collects what became findable and what no more, until it is taken."""

    def __init__(self, geometry: CacheGeometry) -> None:
        self.group = telling_group(geometry)
        """Index of the cache group that decides."""
        self._changes: dict[bytes, bool] = {}

    def stored(self, group: int, hashes: Iterable[bytes]) -> None:
        """Blocks, or snapshots, of a cache group were published, by the hashes of their ends."""
        if group == self.group:
            for found in hashes:
                self._changes[found[:NAME_BYTES]] = True

    def removed(self, pool_key: bytes) -> None:
        """A page can be found no more. pool_key: as the pool has it, the index of its group before
        its hash."""
        if pool_key[0] == self.group:
            self._changes[pool_key[1 : 1 + NAME_BYTES]] = False

    def take(self) -> tuple[bytes, bytes]:
        """(names that can be found, names that cannot) since the last time, one behind the
        other."""
        changes, self._changes = self._changes, {}
        found = b"".join(name for name, is_there in changes.items() if is_there)
        return found, b"".join(name for name, is_there in changes.items() if not is_there)


def telling_group(geometry: CacheGeometry) -> int:
    """The cache group that lacks something first."""
    kinds: Sequence[str] = [group.kind for group in geometry.groups]
    windows = [i for i, group in enumerate(geometry.groups) if group.window is not None]
    return kinds.index("state") if "state" in kinds else next(iter(windows), 0)


def split(names: bytes) -> list[bytes]:
    """Names that stand one behind the other."""
    return [names[start : start + NAME_BYTES] for start in range(0, len(names), NAME_BYTES)]
