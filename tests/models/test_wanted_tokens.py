"""The last layer, or all that read others' keys, for the wanted tokens alone: they get what they
would get among all."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loire.checkpoint.open import open_checkpoint
from loire.kernels.cpu import CpuBackend
from loire.kernels.interface import Backend
from loire.kernels.native.backend import NativeBackend
from loire.kernels.reference import ReferenceBackend
from loire.models.loading import load_decoder
from models.families import FAMILIES, Family
from support.paged_driver import CPU, DrivenSequence, PagedDriver

usable, why = NativeBackend.available()
NAMES = ("llama_biases", "gemma2", "gemma3", "gemma4_per_layer", "gemma4_everything")
SOME = [family for family in FAMILIES if family.name in NAMES]


def backend_named(name: str) -> Backend:
    if name == "native" and not usable:
        pytest.skip(why)
    backends = {"native": NativeBackend, "cpu": CpuBackend, "reference": ReferenceBackend}
    return backends[name]()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["native", "cpu", "reference"])
@pytest.mark.parametrize("family", SOME, ids=lambda family: family.name)
def test_wanted_alone_is_wanted_among_all(
    family: Family, backend: str, dtype: torch.dtype, saved_family: Callable[[Family], Path]
) -> None:
    """Also none at all, whole rows and rows of none; and later steps read the same keys."""
    kernels, checkpoint = backend_named(backend), open_checkpoint(saved_family(family))
    decoder = load_decoder(checkpoint, dtype=dtype, device=CPU, backend=kernels, max_model_len=128)
    exact = dtype in kernels.batch_invariant_dtypes
    rng = random.Random(0)
    whole, narrow = PagedDriver(decoder), PagedDriver(decoder)
    sequences = [(DrivenSequence(), DrivenSequence()) for _ in range(4)]
    for step in range(12):
        members = rng.sample(range(4), rng.randint(1, 4))
        tokens = [[rng.randrange(3, 128) for _ in range(rng.choice((1, 5, 20)))] for _ in members]
        counts = [rng.choice((0, 1, len(t))) if step % 4 else 0 for t in tokens]
        if any(len(sequences[m][0].tokens) + 20 > 120 for m in members):
            continue
        rows = [(sequences[m], t) for m, t in zip(members, tokens, strict=True)]
        all_logits = whole.step([(pair[0], t) for pair, t in rows])
        logits = narrow.step([(pair[1], t) for pair, t in rows], counts)
        for expected, found, count in zip(all_logits, logits, counts, strict=True):
            assert len(found) == count
            expected = expected[len(expected) - count :]
            assert torch.isfinite(found).all()
            if exact:
                assert torch.equal(found, expected)
            else:
                torch.testing.assert_close(found, expected, rtol=0.05, atol=0.3)
