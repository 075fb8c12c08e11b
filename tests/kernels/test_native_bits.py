"""Results have the bits that are written down here, on every processor with fused multiply-add."""

import hashlib

import numpy as np
import pytest
import torch
from native_cases import (
    CACHES,
    DTYPES,
    SETS,
    Row,
    backend,
    empty_cache,
    make_batch,
    needs_library,
)
from torch import Tensor

from loire.checkpoint.formats import Q4_1
from loire.kernels.block_formats import StoredTensor
from loire.kernels.interface import AttentionShape, HeadNorms, RotaryTable
from loire.kernels.native.backend import NativeBackend

# Each product of the portable kernels is rounded once more, and AMX adds in another order.
FUSED = [name for name in SETS if name not in ("portable", "amx")]
SHAPE = AttentionShape(6, 2, 80, scale=0.11, window=400, softcap=30.0)
BLOCK_SIZE = 16

pytestmark = needs_library


def numbers(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """From -2 to 2, the same everywhere: torch's own generators round differently by processor."""
    whole = np.random.default_rng(seed).integers(-(2**20), 2**20, size)
    return torch.from_numpy(whole.astype(np.float32) / 2**19).to(dtype)


def digest(*results: Tensor) -> str:
    whole = hashlib.sha256()
    for result in results:
        whole.update(result.contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()[:12]


def linears(kernels: NativeBackend, dtype: torch.dtype) -> dict[str, str]:
    weight, bias = numbers(70, 300, dtype=dtype), numbers(70, dtype=dtype, seed=1)
    x = numbers(31, 300, dtype=dtype, seed=2)
    found = {
        str(quantization): digest(kernels.linear.pack(weight, bias, quantization=quantization)(x))
        for quantization in (None, "int8", "int4")
    }
    blocks = np.random.default_rng(3).integers(0, 256, (70, 9, 20), dtype=np.uint8)
    blocks[..., :4] = numbers(70, 9, 2).numpy().astype("<f2").view(np.uint8)
    stored = torch.from_numpy(blocks).view(70, -1)
    linear = kernels.linear.pack(StoredTensor(Q4_1, stored), dtype=dtype)
    return found | {"q4_1": digest(linear(x[:, :288].contiguous()))}


def row_by_row(kernels: NativeBackend, dtype: torch.dtype) -> dict[str, str]:
    """Without the exact GELU, for which the C library has the error function."""
    x, weight = numbers(9, 330, dtype=dtype), numbers(330, seed=1)
    normed = kernels.pointwise.rms_norm(x, weight, 1e-5)
    added = kernels.pointwise.add_rms_norm(x.clone(), numbers(9, 330, seed=2), weight, 1e-5)
    as_it_is = torch.eye(330, dtype=dtype)
    return {
        "norm": digest(normed, *added),
        "silu": digest(kernels.linear.pack(as_it_is, gate="silu")(4 * x)),
        "gelu_tanh": digest(kernels.linear.pack(as_it_is, gate="gelu_tanh")(4 * x)),
    }


def attention(kernels: NativeBackend, dtype: torch.dtype, kept: torch.dtype) -> dict[str, str]:
    """Of three prompts, one of them longer than two splits, beyond the window."""
    rows = [Row(530, 530), Row(37, 37), Row(1, 1)]
    batch = make_batch(rows, BLOCK_SIZE, 64, torch.Generator().manual_seed(0))
    cache = empty_cache(64, SHAPE, BLOCK_SIZE, kept)
    heads = SHAPE.num_heads + 2 * SHAPE.num_kv_heads
    qkv = numbers(568, heads * SHAPE.head_dim, dtype=dtype)
    norms = HeadNorms(numbers(80, seed=1), numbers(80, seed=2), 1e-6)
    rotary = RotaryTable(numbers(530, 32, seed=3), numbers(530, 32, seed=4))
    queries = kernels.attention.rotate_and_store(qkv, SHAPE, norms, rotary, batch, cache)
    block, offset = batch.slots // BLOCK_SIZE, batch.slots % BLOCK_SIZE
    written = [cache.keys, cache.values, cache.key_scales, cache.value_scales]
    plan = kernels.attention.plan(batch, BLOCK_SIZE)
    return {
        "rotary": digest(queries, *(x[block, :, offset] for x in written if x is not None)),
        "attention": digest(kernels.attention.attend(queries, cache, plan, SHAPE)),
    }


LINEARS = {
    torch.float32: {
        "None": "a765d73a1f73",
        "int8": "587c73cfbddb",
        "int4": "5c542bad2f7a",
        "q4_1": "0834b6cb245c",  # inputs in float32 are not rounded
    },
    torch.bfloat16: {
        "None": "605a8d7a166d",
        "int8": "76b6d2544f9f",
        "int4": "49f68eacc699",
        "q4_1": "a2f627007d09",
    },
}
ROW_BY_ROW = {
    torch.float32: {
        "norm": "805b1f088780",
        "silu": "f1ac5b20037e",
        "gelu_tanh": "c1b3d273708a",
    },
    torch.bfloat16: {
        "norm": "954e2f661d60",
        "silu": "5c034c8bd581",
        "gelu_tanh": "82f05bae4e7e",
    },
}
ATTENTION = {
    (torch.float32, torch.float32): {"rotary": "e4646c93b4e9", "attention": "3c2851fb35eb"},
    (torch.float32, torch.int8): {"rotary": "8a9f0bf4f5d9", "attention": "1e6a02a90c5c"},
    (torch.bfloat16, torch.bfloat16): {"rotary": "c9e00c55cee0", "attention": "944d046f001c"},
    (torch.bfloat16, torch.int8): {"rotary": "1518e65adcd6", "attention": "a7c3d0486a89"},
}


@pytest.mark.parametrize("instruction_set", FUSED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear(dtype: torch.dtype, instruction_set: str) -> None:
    assert linears(backend(2, instruction_set), dtype) == LINEARS[dtype]


@pytest.mark.parametrize("instruction_set", FUSED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_row_by_row(dtype: torch.dtype, instruction_set: str) -> None:
    assert row_by_row(backend(2, instruction_set), dtype) == ROW_BY_ROW[dtype]


@pytest.mark.parametrize("instruction_set", FUSED)
@pytest.mark.parametrize(("dtype", "kept"), CACHES)
def test_attention(dtype: torch.dtype, kept: torch.dtype, instruction_set: str) -> None:
    assert attention(backend(2, instruction_set), dtype, kept) == ATTENTION[dtype, kept]
