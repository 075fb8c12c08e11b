"""Loads: requests with arrival times and lengths, synthetic or from workload files.

A workload file is JSON: {"name": ..., "variants": [[{"prompt": [token ids], "out": tokens}]]}.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loire.base.errors import ConfigError

Lengths = Literal["fixed", "uniform", "exponential"]
MAX_WORKLOAD_BYTES = 2**30
FIRST_PLAIN_TOKEN = 1000
"""Random prompts draw from here on: below lie the special tokens of all supported families."""


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """One request of a load."""

    prompt_token_ids: tuple[int, ...]
    num_output: int
    """Tokens that it generates; end-of-sequence tokens are ignored."""
    arrival_s: float = 0.0
    """Seconds after the start."""


@dataclass(frozen=True, slots=True)
class Load:
    """Requests in order of arrival."""

    name: str
    requests: tuple[LoadRequest, ...]

    @property
    def num_prompt_tokens(self) -> int:
        """Over all requests."""
        return sum(len(request.prompt_token_ids) for request in self.requests)

    @property
    def num_output_tokens(self) -> int:
        """Over all requests."""
        return sum(request.num_output for request in self.requests)


def read_workload(path: Path) -> list[Load]:
    """The variants of a workload file. Raises ConfigError if it is not one."""
    try:
        if path.stat().st_size > MAX_WORKLOAD_BYTES:
            raise ConfigError(f"{path} has {path.stat().st_size} bytes: too much for a workload")
        data = json.loads(path.read_text(encoding="utf-8"))
        return [
            Load(
                str(data["name"]),
                tuple(
                    LoadRequest(tuple(int(i) for i in entry["prompt"]), int(entry["out"]))
                    for entry in variant
                ),
            )
            for variant in data["variants"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not a workload file: {error!r}") from error


def plain_tokens(rng: random.Random, count: int, vocab_size: int) -> list[int]:
    """Random token ids that are no special tokens (nor the lower half of a small vocabulary)."""
    first = min(FIRST_PLAIN_TOKEN, vocab_size // 2)
    return [rng.randrange(first, vocab_size) for _ in range(count)]


def draw_lengths(
    rng: random.Random, kind: Lengths, count: int, mean: int, low: int, high: int
) -> list[int]:
    """Lengths of a distribution with that mean, cut to low..high."""
    draw: dict[str, Callable[[], float]] = {
        "fixed": lambda: mean,
        "uniform": lambda: rng.uniform(low, 2 * mean - low),
        "exponential": lambda: rng.expovariate(1 / mean),
    }
    return [min(max(round(draw[kind]()), low), high) for _ in range(count)]


def synthetic(
    name: str,
    *,
    num_requests: int,
    prompt_lengths: Sequence[int],
    output_lengths: Sequence[int],
    vocab_size: int,
    seed: int = 0,
    arrival_rate: float | None = None,
    num_shared: int = 0,
) -> Load:
    """Random token ids in the given lengths.

    arrival_rate: requests per second, as a Poisson process; None lets all arrive at once.
    num_shared: leading tokens that all prompts have in common.
    """
    rng = random.Random(seed)
    shared, arrival, requests = plain_tokens(rng, num_shared, vocab_size), 0.0, []
    for index in range(num_requests):
        own = plain_tokens(rng, max(prompt_lengths[index] - num_shared, 1), vocab_size)
        requests.append(LoadRequest((*shared, *own), output_lengths[index], arrival))
        if arrival_rate is not None:
            arrival += rng.expovariate(arrival_rate)
    return Load(name, tuple(requests))


def standard_load(name: str, vocab_size: int, seed: int = 0) -> Load:
    """Loads by which engines are compared here; lengths in tokens.

    W1: 32 requests, prompts 64-512, outputs exponential around 80, all at once. W1s: 128 of them.
    W2: one stream, 128 + 128. W3: 16 requests, 1,024 shared + 16 own, 16 out.
    """
    rng = random.Random(seed)
    if name in ("W1", "W1s"):
        count = 32 if name == "W1" else 128
        return synthetic(
            name,
            num_requests=count,
            prompt_lengths=[rng.randint(64, 512) for _ in range(count)],
            output_lengths=draw_lengths(rng, "exponential", count, 80, 8, 384),
            vocab_size=vocab_size,
            seed=seed + 1,
        )
    if name == "W2":
        return synthetic(
            name,
            num_requests=1,
            prompt_lengths=[128],
            output_lengths=[128],
            vocab_size=vocab_size,
            seed=seed + 1,
        )
    if name == "W3":
        return synthetic(
            name,
            num_requests=16,
            prompt_lengths=[1040] * 16,
            output_lengths=[16] * 16,
            vocab_size=vocab_size,
            seed=seed + 1,
            num_shared=1024,
        )
    raise ConfigError(f"there is no standard load {name!r}; there are W1, W1s, W2 and W3")
