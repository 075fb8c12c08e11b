"""Quantized weights, activations and KV: their definition.

Backends that compute with whole numbers must agree with it up to the rounding of their sums;
native/source/kernels/linear_quantized.h says what the native ones do.

    int8   weights with a scale per output:      weight = code * scale, code in -127..127
    int4   weights with a scale per 32 inputs:   weight = code * scale, code in -8..7
    blocks of GGUF, as loire.kernels.block_formats takes them apart
    inputs with a scale per token and 32 inputs: x = code * scale, code in -127..127, and the
           scale of four binary digits, but any where the weight's are powers of two (MXFP4); with
           formats of two bits and IQ3 codes of an eighth of it, in -1016..1016; with blocks
           inputs in float32 stay as they are, and with FP8 all do
    keys and values with a scale per token and head: x = code * scale, code in -127..127
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from loire.base.config import Quantization

GROUP = 32
"""Inputs that share a scale."""


def multiply_rounded(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    wide: bool,
    any_scale: bool = False,
    fine: bool = False,
) -> Tensor:
    """x [T, in], rounded to codes, times weight (float32 [out, in])."""
    codes, scales = quantize_activations(x, any_scale=any_scale, fine=fine)
    given = (codes * scales[..., None]).flatten(1)[:, : x.shape[1]]
    result = F.linear(given, weight, bias)
    return result if wide else result.to(x.dtype)


def quantize_weight(weight: Tensor, quantization: Quantization) -> tuple[Tensor, Tensor]:
    """Codes (int8 [out, groups, inputs of a group]) and scales (float32 [out, groups]).

    int8: one group, of all inputs. int4: groups of 32, padded with zeros; the scale, rounded to
    bfloat16, maps the number of largest magnitude (the positive one of equals) to -8.
    """
    wide = weight.float()
    if quantization == "int8":
        grouped = wide[:, None, :]
        scales = grouped.abs().amax(dim=2) / 127.0
        lowest, highest = -127, 127
    else:
        grouped = _groups(wide)
        low, high = grouped.amin(dim=2), grouped.amax(dim=2)
        largest = torch.where(high >= -low, high, low)
        scales = (largest / -8.0).bfloat16().float()
        lowest, highest = -8, 7
    codes = (grouped / scales[..., None]).nan_to_num(0.0).round().clamp(lowest, highest)
    return codes.to(torch.int8), scales


def quantize_activations(
    x: Tensor, *, any_scale: bool = False, fine: bool = False
) -> tuple[Tensor, Tensor]:
    """Codes (float32 [T, groups, 32], whole numbers) and scales (float32 [T, groups]) of x [T, in].

    Scales are the least that keep the codes within -127..127, of four binary digits unless
    any_scale; those below 2^-100 are zero. A group with an input that is not finite, or of 2^100 or
    more, has the scale NaN. If fine, scales are an eighth of that, and codes within -1016..1016.
    """
    groups = _groups(x.float())
    largest = groups.abs().amax(dim=2)
    least = largest / torch.full_like(largest, 127.0)
    dropped = 0 if any_scale else 2**20 - 1
    rounded = least.view(torch.int32) + dropped & ~dropped
    scales = torch.where(least < 2.0**-100, 0.0, rounded.view(torch.float32))
    scales = scales / 8 if fine else scales
    codes = (groups * torch.where(scales > 0, scales.reciprocal(), 0.0)[..., None]).round()
    return codes, torch.where(largest < 2.0**100, scales, torch.nan)


def quantize_vectors(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (int8 [..., D]) and scales (float32 [...]) of vectors x [..., D].

    A vector with an element that is not finite has the scale NaN.
    """
    wide = x.float()
    largest = wide.abs().amax(dim=-1)
    # (A number divided by a tensor is its product with the reciprocal, rounded twice.)
    factors = torch.where(largest > 0, torch.full_like(largest, 127.0) / largest, 0.0)
    codes = (wide * factors[..., None]).round()
    return codes.nan_to_num(0.0).to(torch.int8), largest / 127.0 + (wide * 0.0).sum(dim=-1)


def _groups(x: Tensor) -> Tensor:
    padding = -x.shape[1] % GROUP
    return F.pad(x, (0, padding)).view(x.shape[0], -1, GROUP)
