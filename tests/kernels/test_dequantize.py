"""Block formats of GGUF: native kernels against the gguf library, whose results are the definition.

Their way from a file to a tensor is in tests/models/test_loading.py.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import SETS, backend, needs_library

from loire.checkpoint.formats import FORMATS
from loire.kernels import dequantize
from loire.kernels.dequantize import dequantize_by_library
from loire.kernels.native.backend import NativeBackend
from loire.kernels.reference import ReferenceBackend

BLOCKS = sorted(set(FORMATS) - {"F32", "F16", "BF16"})


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """The same bits, the sign of zeros included; any NaN equals any other."""
    bits = torch.int32 if a.dtype == torch.float32 else torch.int16
    a, b = (torch.where(x.isnan(), torch.nan, x) for x in (a, b))
    return a.dtype == b.dtype and torch.equal(a.view(bits), b.view(bits))


@needs_library
@pytest.mark.parametrize("fmt", BLOCKS)
@settings(max_examples=12, deadline=None)
@given(num_blocks=st.integers(1, 1200), seed=st.integers(0, 2**32 - 1))
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_any_bits_give_what_the_library_makes_of_them(fmt: str, num_blocks: int, seed: int) -> None:
    """Scales that are denormal, infinite or not a number are among random bits."""
    format = FORMATS[fmt]
    raw = np.random.default_rng(seed).bytes(num_blocks * format.block_bytes)
    if fmt == "MXFP4":  # the two smallest scales are no normal numbers, and count as zero
        blocks = np.frombuffer(raw, np.uint8).reshape(num_blocks, -1).copy()
        blocks[:, 0] = np.maximum(blocks[:, 0], 2)
        raw = blocks.tobytes()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        expected = dequantize_by_library(memoryview(raw), format, dtype)
        assert expected.shape == (num_blocks * format.block_elements,)
        for name in SETS:
            found = backend(2, name).linear.dequantize(memoryview(raw), format, dtype)
            assert same(found, expected), name


@needs_library
@pytest.mark.parametrize("fmt", BLOCKS)
def test_every_scale(fmt: str) -> None:
    """All 65,536 half-precision numbers in the place of the scale."""
    format = FORMATS[fmt]
    blocks = np.random.default_rng(0).integers(0, 256, (2**16, format.block_bytes), dtype=np.uint8)
    at = {"Q6_K": 208, "Q3_K": 108, "Q2_K": 80}.get(fmt, 0)
    blocks[:, at : at + 2] = np.arange(2**16, dtype="<u2")[:, None].view(np.uint8)
    if fmt in ("Q4_1", "Q5_1", "Q4_K", "Q5_K", "Q2_K"):  # the minimum, in another order
        blocks[:, at + 2 : at + 4] = np.arange(2**16, dtype="<u2")[::-1, None].copy().view(np.uint8)
    if fmt == "MXFP4":  # no half, but a byte
        blocks[:, 0] = np.maximum(blocks[:, 0], 2)
    data = memoryview(blocks.tobytes())
    with np.errstate(invalid="ignore", over="ignore"):
        expected = dequantize_by_library(data, format, torch.float32)
        found = backend().linear.dequantize(data, format, torch.float32)
    assert expected.isfinite().float().mean() > 0.9
    assert same(found, expected)


@needs_library
def test_what_is_no_block_is_refused() -> None:
    with pytest.raises(ValueError, match=r"35 bytes are not blocks of 34 bytes \(Q8_0\)"):
        backend().linear.dequantize(memoryview(bytes(35)), FORMATS["Q8_0"], torch.float32)
    with pytest.raises(ValueError, match=r"4 bytes are not blocks of 4 bytes \(F32\)"):
        backend().linear.dequantize(memoryview(bytes(4)), FORMATS["F32"], torch.float32)
    assert backend().linear.dequantize(memoryview(b""), FORMATS["Q8_0"], torch.float32).shape == (
        0,
    )


@needs_library
def test_native_kernels_are_taken_whatever_computes_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = memoryview(np.random.default_rng(1).bytes(3 * 144))
    with np.errstate(all="ignore"):
        expected = dequantize_by_library(data, FORMATS["Q4_K"], torch.float32)
    monkeypatch.setattr(dequantize, "dequantize_by_library", None)
    found = ReferenceBackend().linear.dequantize(data, FORMATS["Q4_K"], torch.float32)
    assert same(found, expected)


def test_without_the_native_library_the_gguf_library_does_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(NativeBackend, "available", staticmethod(lambda: (False, "not built")))
    monkeypatch.setattr(dequantize, "_native", dequantize._native.__wrapped__)
    data = memoryview(bytes(144))
    found = ReferenceBackend().linear.dequantize(data, FORMATS["Q4_K"], torch.float32)
    assert same(found, torch.zeros(256))
