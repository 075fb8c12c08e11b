"""Chained hashes that name the content of full KV blocks.

The hash of a block covers its own tokens and, through the hash of the block before it, the whole
prefix, the cache salt and the adapter: equal hashes mean equal KV. SHA-256, so that nobody can
make two prefixes collide and read another's cache.
"""

import hashlib
import struct
from collections.abc import Sequence


def root_hash(cache_salt: str = "", adapter: str = "", computed_by: str = "") -> bytes:
    """Start of the chain: requests with another salt or adapter share nothing.

    computed_by: what computes the KV (EngineConfig.computed_by): another model, dtype or kernel
    gives other numbers, and what outlives a process must not be taken for its own.
    """
    parts = [part.encode() for part in (cache_salt, adapter, computed_by)]
    header = struct.pack("<QQQ", *map(len, parts))
    return hashlib.sha256(b"loire-kv" + header + b"".join(parts)).digest()


def extend_chain(
    chain: list[bytes], root: bytes, token_ids: Sequence[int], block_size: int
) -> None:
    """Append to chain the hashes of all full blocks of token_ids that it does not have yet."""
    sha256 = hashlib.sha256
    pack = struct.Struct(f"<{block_size}I").pack
    previous = chain[-1] if chain else root
    for block in range(len(chain), len(token_ids) // block_size):
        start = block * block_size
        previous = sha256(previous + pack(*token_ids[start : start + block_size])).digest()
        chain.append(previous)
