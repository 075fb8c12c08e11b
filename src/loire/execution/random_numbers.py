"""Random numbers as a pure function: the same request draws the same ones in any company."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finaliser of SplitMix64 (Steele, Lea & Flood 2014): a bijection that spreads every bit."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


def uniform(
    seeds: Sequence[int], choices: Sequence[int], positions: Sequence[int]
) -> NDArray[np.float64]:
    """Numbers in [0, 1), float64 [L], each from a seed, the index among n choices and the position
    of the token that is drawn with it."""
    x = _mix(np.array([seed & _MASK for seed in seeds], dtype=np.uint64))
    x = _mix(x ^ np.array(choices, dtype=np.uint64))
    x = _mix(x ^ np.array(positions, dtype=np.uint64))
    numbers: NDArray[np.float64] = (x >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers
