"""Quantized weights of safetensors checkpoints: the tensors that make one, found and checked.

    X.weight_packed, X.weight_scale, X.weight_shape          compressed-tensors: codes in words
        and perhaps X.weight_zero_point, X.weight_g_idx
    X.weight (int8 or FP8), X.weight_scale or ..._scale_inv  compressed-tensors, FP8, ModelOpt
    X.weight_packed, X.weight_scale (bytes)                  compressed-tensors: MXFP4
        or FP8, and X.weight_global_scale                    NVFP4
    X.weight (bytes), X.weight_scale, X.weight_scale_2       ModelOpt's NVFP4
    X.qweight, X.qzeros, X.scales, perhaps X.g_idx           AWQ, GPTQ, AutoRound

become one tensor X.weight each. Scales for rounding activations and caches are left out: Loire
rounds activations, if at all, with scales of its own, finer ones.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from loire.base.errors import CheckpointError, UnsupportedModelError
from loire.checkpoint.checkpoint import QuantizedWeight, TensorInfo
from loire.checkpoint.formats import (
    F8_128,
    MXFP4,
    NV4_128,
    W4_128,
    W4Z_32,
    W4Z_128,
    W8_128,
    WeightFormat,
)
from loire.checkpoint.input_order import order_of_inputs
from loire.checkpoint.quantization_config import QuantizationConfig
from loire.checkpoint.small_tensors import data_of, matrix, shaped, typed, whole_numbers

_NUMBERS = ("F32", "F16", "BF16")
_FP8 = ("F8_E4M3", "F8_E5M2")
_NOT_NEEDED = (".input_scale", ".input_global_scale", ".input_zero_point", ".input_scale_ub",
               ".output_scale", ".k_scale", ".v_scale", ".q_scale", ".kv_scale",
               ".activation_scale", ".weight_shape")  # fmt: skip
_PARTS = (".qweight", ".qzeros", ".scales", ".g_idx", ".weight_packed", ".weight_scale",
          ".weight_scale_inv", ".weight_zero_point", ".weight_g_idx", ".weight_global_scale",
          ".weight_scale_2")  # fmt: skip
EXPANDED = {bits: WeightFormat(f"INT{bits}", 1, 1) for bits in range(2, 9)}
"""Codes whose groups no block format has."""
_NVFP4 = WeightFormat("NVFP4", 1, 1)
_POWERS = WeightFormat("F8_E8M0", 1, 1)
_GPTQ_BITS = (2, 3, 4, 8)


def combined(
    tensors: Mapping[str, TensorInfo], config: QuantizationConfig | None
) -> dict[str, TensorInfo]:
    """The same tensors, those that make a quantized weight as one.

    Raises CheckpointError if parts are missing or do not fit, UnsupportedModelError for weights in
    types that Loire does not read.
    """
    found: dict[str, TensorInfo] = {}
    if config is None:
        found.update(tensors)
    else:
        for name, info in tensors.items():
            base, _, ending = name.rpartition(".")
            parts = _Parts(base, tensors)
            if ending == "qweight" and config.method in ("awq", "gptq"):
                found[f"{base}.weight"] = _words(parts, info, config)
            elif ending == "weight_packed" and info.format.name == "U8":
                found[f"{base}.weight"] = _fp4(parts, info)
            elif ending == "weight" and info.format.name == "U8":
                found[name] = _fp4(parts, info)
            elif ending == "weight_packed":
                found[f"{base}.weight"] = _compressed(parts, info)
            elif ending == "weight" and info.format.name in ("I8", *_FP8):
                found[name] = _plain(parts, info)
            elif not name.endswith((*_PARTS, *_NOT_NEEDED)):
                found[name] = info
    for name, info in found.items():
        if not info.is_quantized and info.format.name not in _NUMBERS:
            raise UnsupportedModelError(
                f"{info.path}: tensor {name!r} has dtype {info.format.name}; Loire reads "
                f"{', '.join(_NUMBERS)} from safetensors, and others where quantization_config in "
                f"config.json says how the weights are quantized"
            )
    return found


@dataclass(frozen=True, slots=True)
class _Parts:
    """Access to the tensors of one module."""

    base: str
    tensors: Mapping[str, TensorInfo]

    def get(self, ending: str) -> TensorInfo | None:
        return self.tensors.get(f"{self.base}.{ending}")

    def need(self, ending: str, *, dtypes: tuple[str, ...]) -> TensorInfo:
        found = self.get(ending)
        if found is None:
            raise CheckpointError(f"tensor '{self.base}.{ending}' is missing")
        return typed(found, dtypes)


def _made(
    parts: _Parts, shape: tuple[int, int], quantized: QuantizedWeight, fmt: WeightFormat
) -> TensorInfo:
    name = f"{parts.base}.weight"
    return replace(quantized.codes, name=name, shape=shape, format=fmt, quantized=quantized)


def _words(parts: _Parts, codes: TensorInfo, config: QuantizationConfig) -> TensorInfo:
    """AWQ and GPTQ: words of 32 bits along the outputs or the inputs, inputs first."""
    typed(codes, ("I32",))
    rows, columns = matrix(codes)
    is_awq = config.method == "awq"
    scales = parts.need("scales", dtypes=_NUMBERS)
    zeros = parts.need("qzeros", dtypes=("I32",))
    bits = config.bits or _bits_told(codes, zeros, columns)
    inputs = rows if is_awq else rows * 32 // bits
    outputs = columns * 32 // bits if is_awq else columns
    if not is_awq and rows * 32 % bits:
        raise CheckpointError(
            f"{codes.path}: tensor {codes.name!r} has {rows} words for each output, which hold no "
            f"whole codes of {bits} bits"
        )
    group = config.group_size or inputs
    if not config.bits:
        group = math.ceil(inputs / scales.shape[0]) if scales.shape and scales.shape[0] else inputs
    num_groups = math.ceil(inputs / group)
    shaped(scales, (num_groups, outputs))
    shaped(zeros, (num_groups, math.ceil(outputs * bits / 32)))
    groups, order = order_of_inputs(parts.get("g_idx"), inputs, group, num_groups)
    quantized = QuantizedWeight(
        layout="awq" if is_awq else "gptq",
        bits=bits,
        codes=codes,
        scales=scales,
        zeros=None if config.symmetric and not is_awq else zeros,
        groups=groups,
        order=order,
        group_size=group,
        zero_offset=config.zero_offset,
        middle=zeros if config.symmetric and not is_awq else None,
    )
    return _made(parts, (outputs, inputs), quantized, _kept(quantized, inputs))


def _bits_told(codes: TensorInfo, zeros: TensorInfo, outputs: int) -> int:
    """In how many bits GPTQ's zero points are, and so the weights."""
    words = zeros.shape[-1] if zeros.shape else 0
    for bits in _GPTQ_BITS:
        if words == math.ceil(outputs * bits / 32):
            return bits
    raise CheckpointError(
        f"{zeros.path}: tensor {zeros.name!r} has {words} words for the zero points of {outputs} "
        f"outputs, which are none in {', '.join(map(str, _GPTQ_BITS))} bits"
    )


def _compressed(parts: _Parts, codes: TensorInfo) -> TensorInfo:
    """Codes in words of 32 bits along the inputs, with an offset that makes them unsigned."""
    typed(codes, ("I32",))
    rows, columns = matrix(codes)
    stated = shaped(parts.need("weight_shape", dtypes=("I64", "I32")), (2,))
    outputs, inputs = whole_numbers(stated)
    bits = next((b for b in EXPANDED if inputs > 0 and math.ceil(inputs * b / 32) == columns), 0)
    if outputs != rows or not bits:
        raise CheckpointError(
            f"{codes.path}: tensor {codes.name!r} has the shape {codes.shape}, which holds no "
            f"weight of {outputs} x {inputs} in 2 to 8 bits"
        )
    scales = parts.need("weight_scale", dtypes=_NUMBERS)
    group = _group_of(scales, outputs, inputs)
    num_groups = math.ceil(inputs / group)
    zeros = parts.get("weight_zero_point")
    if zeros is not None:
        packed = (math.ceil(outputs * bits / 32), num_groups)
        # (Until 2025 the library stored them by themselves.)
        plain = typed(zeros, ("I32", "I8")).format.name == "I8"
        shaped(zeros, scales.shape if plain else packed)
    groups, order = order_of_inputs(parts.get("weight_g_idx"), inputs, group, num_groups)
    quantized = QuantizedWeight(
        layout="words",
        bits=bits,
        codes=codes,
        scales=scales,
        zeros=zeros,
        groups=groups,
        order=order,
        group_size=group,
    )
    return _made(parts, (outputs, inputs), quantized, _kept(quantized, inputs))


def _fp4(parts: _Parts, codes: TensorInfo) -> TensorInfo:
    """Two codes of FP4 (e2m1) in a byte: with powers of two as scales it is MXFP4, with FP8 and one
    number for all NVFP4, which is expanded where inputs are no whole blocks."""
    outputs, columns = matrix(codes)
    scales = parts.need("weight_scale", dtypes=("U8", "F8_E8M0", "F8_E4M3"))
    inputs, is_mxfp4 = 2 * columns, scales.format.name != "F8_E4M3"
    group = MXFP4.block_elements if is_mxfp4 else 16
    if inputs % group:
        raise CheckpointError(
            f"{codes.path}: tensor {codes.name!r} has {inputs} inputs, which are no groups of "
            f"{group}"
        )
    shaped(scales, (outputs, inputs // group))
    shape = (outputs, inputs)
    if is_mxfp4:
        name = f"{parts.base}.weight"
        return replace(codes, name=name, shape=shape, format=MXFP4, exponents=scales)
    divides = codes.name.endswith(".weight_packed")
    factor = parts.need("weight_global_scale" if divides else "weight_scale_2", dtypes=_NUMBERS)
    shaped(factor, (1,), ())
    quantized = QuantizedWeight(
        layout="fp4",
        bits=4,
        codes=codes,
        scales=scales,
        group_size=group,
        factor=factor,
        divides=divides,
    )
    return _made(parts, shape, quantized, _NVFP4 if inputs % NV4_128.block_elements else NV4_128)


def _plain(parts: _Parts, codes: TensorInfo) -> TensorInfo:
    """A code of eight bits each: int8 or FP8."""
    outputs, inputs = matrix(codes)
    scales = parts.get("weight_scale_inv") or parts.need(
        "weight_scale", dtypes=(*_NUMBERS, "F8_E8M0", "U8")
    )
    typed(scales, (*_NUMBERS, "F8_E8M0", "U8"))
    if scales.format.name == "U8":  # MXFP8
        scales = replace(scales, format=_POWERS)
    if len(scales.shape) == 4 and scales.shape[1] == scales.shape[3] == 1:  # ModelOpt's blocks
        scales = replace(scales, shape=scales.shape[::2])
    rows_per_scale, group = 1, inputs
    if scales.shape in ((), (1,), (1, 1)) and outputs > 1:
        rows_per_scale = outputs
    elif scales.shape != (outputs,):
        rows_per_scale, group = _block_of(scales, outputs, inputs)
    zeros = parts.get("weight_zero_point")
    is_fp8 = codes.format.name in _FP8
    if zeros is not None:
        zeros = None if is_fp8 else shaped(typed(zeros, ("I8",)), scales.shape)
    quantized = QuantizedWeight(
        layout="plain",
        bits=8,
        codes=codes,
        scales=scales,
        zeros=zeros,
        group_size=group,
        rows_per_scale=rows_per_scale,
    )
    return _made(parts, (outputs, inputs), quantized, _kept(quantized, inputs))


def _kept(quantized: QuantizedWeight, inputs: int) -> WeightFormat:
    """The block format that holds it, or one that says that it is expanded."""
    group = quantized.group_size if quantized.group_size < inputs else inputs
    fits = (quantized.groups is None or quantized.order is not None) and inputs % group == 0
    if quantized.codes.format.name in _FP8:
        is_known = quantized.codes.format.name == "F8_E4M3"
        return F8_128 if is_known and fits and group % 128 == 0 else quantized.codes.format
    # What has fewer bits than a format is in it without a loss; codes of up to seven bits less
    # their zero points fit eight with a sign.
    if quantized.bits > 4 and fits and group % 128 == 0:
        return W8_128 if quantized.zeros is None or quantized.bits < 8 else EXPANDED[8]
    if quantized.bits <= 4 and fits and group % 128 == 0:
        return W4_128 if quantized.zeros is None else W4Z_128
    if quantized.bits <= 4 and fits and group % 32 == 0:
        return W4Z_32
    return EXPANDED[quantized.bits]


def without_empty_biases(
    tensors: Mapping[str, TensorInfo], needed: Collection[str]
) -> dict[str, TensorInfo]:
    """The same tensors, without biases of quantized weights that the model does not have and that
    are zero: AutoGPTQ wrote them."""
    return {
        name: info
        for name, info in tensors.items()
        if name in needed or not _is_empty_bias(name, info, tensors)
    }


def _is_empty_bias(name: str, info: TensorInfo, tensors: Mapping[str, TensorInfo]) -> bool:
    base, _, ending = name.rpartition(".")
    weight = tensors.get(f"{base}.weight")
    if ending != "bias" or weight is None or weight.quantized is None or len(info.shape) != 1:
        return False
    return info.shape == weight.shape[:1] and not any(data_of(info))


def _group_of(scales: TensorInfo, outputs: int, inputs: int) -> int:
    """Inputs that share a scale, from the number of scales."""
    if scales.shape in ((outputs,), (outputs, 1)):
        return inputs
    if len(scales.shape) != 2 or scales.shape[0] != outputs or not scales.shape[1]:
        raise CheckpointError(
            f"{scales.path}: tensor {scales.name!r} has the shape {scales.shape}, which are no "
            f"scales of {outputs} x {inputs}"
        )
    group, rest = divmod(inputs, scales.shape[1])
    if rest or not group:
        raise CheckpointError(
            f"{scales.path}: tensor {scales.name!r} has {scales.shape[1]} scales per output, which "
            f"do not divide {inputs} inputs into groups"
        )
    return group


def _block_of(scales: TensorInfo, outputs: int, inputs: int) -> tuple[int, int]:
    """Outputs and inputs that share a scale: groups of a row, or FP8's blocks of 128 x 128."""
    if len(scales.shape) == 2 and scales.shape[0] == outputs:
        return 1, _group_of(scales, outputs, inputs)
    blocks = (math.ceil(outputs / 128), math.ceil(inputs / 128))
    shaped(scales, blocks, (outputs, 1), (1,))
    return 128, 128
