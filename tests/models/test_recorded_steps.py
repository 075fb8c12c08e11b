"""A step that is replayed gives the same bits as one that is computed call by call."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loire.base.errors import EngineError
from loire.checkpoint.feed_forward import Routing
from loire.checkpoint.open import open_checkpoint
from loire.kernels.interface import AdapterRows, ComputeStep, FlatBatch, Linear, LowRank
from loire.kernels.native.backend import NativeBackend
from loire.kernels.native.recording import MOST_TOKENS
from loire.kernels.reference import no_capture
from loire.models.decoder import Decoder
from loire.models.loading import load_decoder
from support.paged_driver import CPU, DrivenSequence, PagedDriver
from support.recorded_models import save

usable, why = NativeBackend.available()
pytestmark = pytest.mark.skipif(not usable, reason=why)


class PlainBackend(NativeBackend):
    """Records nothing."""

    def __init__(self, num_threads: int) -> None:
        super().__init__(num_threads)
        self.capture = no_capture


def load(path: Path, backend: NativeBackend, dtype: torch.dtype = torch.bfloat16) -> Decoder:
    checkpoint = open_checkpoint(path)
    return load_decoder(checkpoint, dtype=dtype, device=CPU, backend=backend, max_model_len=256)


def run(drivers: list[PagedDriver], seed: int) -> list[list[Tensor]]:
    """Logits of each driver's steps: rows of one token and of several, more and less than recorded.

    The drivers take turns, step by step.
    """
    rng = random.Random(seed)
    sequences = [[DrivenSequence() for _ in range(4)] for _ in drivers]
    logits: list[list[Tensor]] = [[] for _ in drivers]
    for _ in range(40):
        members = rng.sample(range(4), rng.randint(1, 4))
        counts = [rng.choice((1, 1, 1, 2, MOST_TOKENS + 1)) for _ in members]
        tokens = [[rng.randrange(3, 259) for _ in range(count)] for count in counts]
        for number, driver in enumerate(drivers):
            rows = [(sequences[number][m], t) for m, t in zip(members, tokens, strict=True)]
            if any(len(s.tokens) + len(t) > 200 for s, t in rows):
                return logits
            logits[number] += driver.step(rows)
    return logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replayed_is_computed(tiny_llama: Path, dtype: torch.dtype) -> None:
    """Also where two models, or two caches of one model, share a backend and take turns."""
    shared = NativeBackend(2)
    one, other = load(tiny_llama, shared, dtype), load(tiny_llama, shared, dtype)
    plain = load(tiny_llama, PlainBackend(2), dtype)
    drivers = [PagedDriver(decoder, seed=i) for i, decoder in enumerate((plain, one, other, one))]
    computed, *replayed = run(drivers, seed=1)
    assert len(computed) > 40
    for logits in replayed:
        assert all(torch.equal(a, b) for a, b in zip(computed, logits, strict=True))


@pytest.mark.parametrize("kind", ["gemma4_dense", "deepseek_v3"])
def test_replayed_is_computed_whatever_layers_are_made_of(kind: str, tmp_path: Path) -> None:
    """With embeddings per layer and keys and values of others, with latents and experts."""
    path = save(kind, tmp_path)
    plain, recorded = load(path, PlainBackend(2)), load(path, NativeBackend(2))
    computed, replayed = run([PagedDriver(plain), PagedDriver(recorded)], seed=1)
    assert len(computed) > 40
    assert all(torch.equal(a, b) for a, b in zip(computed, replayed, strict=True))


def test_replayed_is_computed_with_mamba2_and_experts(tmp_path: Path) -> None:
    """In layers that are one part each, experts with a squared ReLU and a shared one."""
    path = save("nemotron_h", tmp_path)
    plain, recorded = load(path, PlainBackend(2)), load(path, NativeBackend(2))
    computed, replayed = run([PagedDriver(plain), PagedDriver(recorded)], seed=1)
    assert len(computed) > 40
    assert all(torch.equal(a, b) for a, b in zip(computed, replayed, strict=True))


def small_step() -> tuple[NativeBackend, Callable[[ComputeStep, int], Tensor]]:
    """A backend, and steps of two tokens by what it captured."""
    from kernels.native_cases import Row, make_batch

    backend = NativeBackend(1)
    batch = make_batch([Row(2, 2)], 16, 4, torch.Generator().manual_seed(0))

    def step(captured: ComputeStep, seed: int) -> Tensor:
        token_ids = torch.tensor([seed, seed + 1])
        return captured(token_ids, [batch], [backend.attention.plan(batch, 16)], None)

    return backend, step


def test_a_copy_would_not_be_replayed() -> None:
    backend, step = small_step()
    table, weight = torch.randn(9, 32, generator=torch.Generator().manual_seed(0)), torch.ones(32)

    def embed(token_ids: Tensor) -> Tensor:
        return backend.pointwise.embed(token_ids, table, 1.0, weight, 1e-5)[0]

    def compute(token_ids: Tensor, *_: Any) -> Tensor:
        return backend.pointwise.rms_norm(embed(token_ids)[:, :16], weight[:16], 1e-5)

    captured = backend.capture(compute)
    with pytest.raises(EngineError, match="without gaps"):
        step(captured, 0)
    # The recording has ended: this one is not in it, and the next one can be made.
    good = backend.capture(lambda token_ids, *_: embed(token_ids))
    first = step(good, 1)
    assert not torch.equal(step(good, 2), first)
    assert torch.equal(step(good, 1), first)


@dataclass(frozen=True)
class Expert:
    gate_up: Linear
    down: Linear


def test_tokens_and_steps_have_adapters_of_their_own() -> None:
    """A step is replayed with the adapters that its tokens have, and what those are by then."""
    backend, _ = small_step()
    from kernels.native_cases import Row, make_batch

    generator = torch.Generator().manual_seed(3)
    table, weight = torch.randn(9, 32, generator=generator), torch.ones(32)
    linear = backend.linear.pack(torch.randn(24, 32, generator=generator))
    pack, weights = backend.linear.pack, torch.randn(5, 32, 32, generator=generator) * 0.3
    router = pack(weights[4, :2].contiguous())
    both_experts = [Expert(pack(w, gate="squared_relu"), pack(w)) for w in weights[:2]]
    experts = backend.linear.experts(both_experts, Routing(num_experts=2, top_k=1))
    plain = make_batch([Row(2, 2)], 16, 4, generator)

    def low_rank(seed: int, outputs: int = 24) -> list[LowRank]:
        generator = torch.Generator().manual_seed(seed)
        down = torch.randn(2, 32, generator=generator)
        return [LowRank(down, torch.randn(outputs, 2, generator=generator))]

    def compute(token_ids: Tensor, batches: Sequence[FlatBatch], *_: Any) -> Tensor:
        x, _ = backend.pointwise.embed(token_ids, table, 1.0, weight, 1e-5)
        x = experts(x, router(x, wide=True), None, batches[0])
        return linear(x, batches[0])

    captured = backend.capture(compute)
    token_ids = torch.tensor([1, 2])

    def both(numbers: list[int] | None) -> tuple[Tensor, Tensor]:
        adapters = None if numbers is None else AdapterRows(torch.tensor(numbers).int())
        batch = replace(plain, adapters=adapters)
        plan = backend.attention.plan(batch, 16)
        return captured(token_ids, [batch], [plan], None), compute(token_ids, [batch])

    for expert in both_experts:
        expert.down.adapt(1, expert.down.pack_adapter(low_rank(2, 32)))
    linear.adapt(0, linear.pack_adapter(low_rank(0)))
    linear.adapt(1, linear.pack_adapter(low_rank(1)))
    seen = []
    for numbers in (None, [0, 1], [1, -1], [1, 1], None, [-1, -1], [0, 1]):
        replayed, computed = both(numbers)
        assert torch.equal(replayed, computed)
        seen.append(replayed)
    assert torch.equal(seen[0], seen[5])
    assert torch.equal(seen[1], seen[6])
    assert not torch.equal(seen[1], seen[2])
    linear.adapt(1, linear.pack_adapter(low_rank(5)))
    replayed, computed = both([0, 1])
    assert torch.equal(replayed, computed)
    assert torch.equal(replayed[0], seen[1][0])
    assert not torch.equal(replayed[1], seen[1][1])
