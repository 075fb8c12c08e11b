"""Random numbers as a pure function: the same request draws the same ones in any company."""

_MASK = (1 << 64) - 1


def _mix(x: int) -> int:
    """Finaliser of SplitMix64 (Steele, Lea & Flood 2014): a bijection that spreads every bit."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def uniform(seed: int, choice: int, position: int) -> float:
    """A number in [0, 1) from the seed, the index among n choices and the token's position."""
    x = _mix(_mix(_mix(seed & _MASK) ^ choice) ^ position)
    return float(x >> 11) * 2.0**-53
