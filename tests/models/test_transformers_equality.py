"""Every family against transformers: the same greedy tokens in float32, and logits that are close.

Ours run in a paged cache with shuffled blocks and NaN in all memory that no sequence wrote.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from families import FAMILIES, Family
from torch import Tensor

from loire.checkpoint.open import open_checkpoint
from loire.kernels.select import available_backends, select_backend
from loire.models.decoder import Decoder
from loire.models.loading import load_decoder
from support.paged_driver import CPU, DrivenSequence, PagedDriver, random_chunks

NUM_TOKENS, NUM_AFTER_CHUNKS = 64, 24
BACKENDS = [info.name for info in available_backends() if info.usable]
FIRST = "reference"
"""Whose tokens transformers is asked about."""


@dataclass(frozen=True)
class Expected:
    """What transformers makes of a family's tiny model."""

    family: Family
    directory: Path
    prompt: list[int]
    tokens: list[int]
    logits: Tensor
    """float32 [prompt + tokens, V], each position after all before it."""


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: str(family.name))
def expected(request: pytest.FixtureRequest, saved_family: Callable[[Family], Path]) -> Expected:
    family: Family = request.param
    directory, model = saved_family(family), family.build()
    prompt = random.Random(family.name).choices(range(3, 128), k=family.prompt_len)
    decoder = load(directory, FIRST, family.max_model_len)
    tokens = PagedDriver(decoder).greedy(prompt, NUM_TOKENS)
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + tokens])).logits[0].float()
    # If behind each of these tokens the next one is the likeliest, transformers generates the same
    # ones greedily; and one pass over all of them takes a fraction of the time.
    assert logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist() == tokens
    return Expected(family, directory, prompt, tokens, logits)


@pytest.fixture(scope="module", params=BACKENDS)
def decoder(request: pytest.FixtureRequest, expected: Expected) -> Decoder:
    return load(expected.directory, request.param, expected.family.max_model_len)


def load(
    directory: Path, backend: str, max_model_len: int, dtype: torch.dtype = torch.float32
) -> Decoder:
    return load_decoder(
        open_checkpoint(directory),
        dtype=dtype,
        device=CPU,
        backend=select_backend(backend, CPU, dtype),
        max_model_len=max_model_len,
    )


def close(actual: Tensor, expected: Tensor, family: Family) -> None:
    """To a share of the largest logit, which is what float32 leaves after a few layers."""
    bound = family.tolerance * float(expected.abs().max())
    torch.testing.assert_close(actual, expected, rtol=0, atol=bound)


def test_the_models_are_not_trivial(expected: Expected) -> None:
    # A model that repeats itself would prove little.
    assert len(set(expected.tokens)) > 8, expected.tokens


def test_whole_prefill(expected: Expected, decoder: Decoder) -> None:
    if decoder.backend.name != FIRST:
        assert PagedDriver(decoder).greedy(expected.prompt, NUM_TOKENS) == expected.tokens


def test_chunked_prefill(expected: Expected, decoder: Decoder) -> None:
    """One way to cut on a backend, another one on the next."""
    seed = (FAMILIES.index(expected.family) + BACKENDS.index(decoder.backend.name)) % 2
    rng = random.Random(seed)
    chunks = random_chunks(rng, len(expected.prompt))
    driver = PagedDriver(decoder, block_size=rng.choice([8, 16, 32]), seed=seed)
    first_tokens = expected.tokens[:NUM_AFTER_CHUNKS]
    assert driver.greedy(expected.prompt, NUM_AFTER_CHUNKS, chunks) == first_tokens


def test_logits(expected: Expected, decoder: Decoder) -> None:
    [logits] = PagedDriver(decoder).step([(DrivenSequence(), expected.prompt + expected.tokens)])
    close(logits, expected.logits, expected.family)


def test_mixed_batches(expected: Expected, decoder: Decoder) -> None:
    """Sequences of several lengths, their tokens fed in random pieces beside each other."""
    rng = random.Random(2)
    whole = expected.prompt + expected.tokens
    driver = PagedDriver(decoder)
    # Each is a prefix of the whole, so that transformers' logits are known at all positions.
    lengths = [len(whole), 70, 33, 16, 1]
    sequences = [DrivenSequence() for _ in lengths]
    steps = 0
    while any(len(s.tokens) < n for s, n in zip(sequences, lengths, strict=True)):
        rows = []
        for sequence, length in zip(sequences, lengths, strict=True):
            start = len(sequence.tokens)
            if start < length and rng.random() < 0.7:
                count = rng.choice([1, 1, 1, rng.randint(1, 40)])
                rows.append((sequence, whole[start : min(start + count, length)]))
        if not rows:
            continue
        rng.shuffle(rows)
        steps += 1
        starts = [len(sequence.tokens) for sequence, _ in rows]
        for start, logits in zip(starts, driver.step(rows), strict=True):
            close(logits, expected.logits[start : start + len(logits)], expected.family)
    assert steps > 5


def test_bfloat16_is_as_close_as_transformers(expected: Expected) -> None:
    """In bfloat16 nothing is equal; our error stays within twice that of transformers."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    kind = AutoModelForImageTextToText if expected.family.vision else AutoModelForCausalLM
    model = kind.from_pretrained(expected.directory, dtype=torch.bfloat16)
    tokens = expected.prompt + expected.tokens
    with torch.inference_mode():
        theirs = model(torch.tensor([tokens])).logits[0].float()

    def error_of(logits: Tensor) -> Tensor:
        by_token = (logits - expected.logits).square().mean(dim=1)
        return (by_token.median() if expected.family.has_near_ties else by_token.mean()).sqrt()

    bound = 2 * error_of(theirs)
    for backend in BACKENDS:
        decoder = load(expected.directory, backend, expected.family.max_model_len, torch.bfloat16)
        driver = PagedDriver(decoder)
        sequence = DrivenSequence()
        # A prefill, a chunk and single tokens, so that each path of a backend is taken.
        pieces = [tokens[:40], tokens[40:70], *([token] for token in tokens[70:])]
        logits = torch.cat([driver.step([(sequence, piece)])[0] for piece in pieces])
        error = error_of(logits)
        assert error <= bound, f"{backend}: {error:.4f} against {bound / 2:.4f}"
