"""MXFP4 as gpt-oss' safetensors files have it: codes of four bits and exponents in tensors apart.

    X_blocks   U8 [experts, outputs, inputs / 32, 16]: two neighbours in a byte, the first in its
               lower half
    X_scales   U8 [experts, outputs, inputs / 32]: powers of two, from 127 on

become one tensor X (OCP Microscaling Formats Specification 1.0, and transformers' mxfp4.py). What
quantized_tensors.py puts together is left as it is.
"""

from collections.abc import Mapping
from dataclasses import replace

from loire.base.errors import CheckpointError, UnsupportedModelError
from loire.checkpoint.checkpoint import TensorInfo
from loire.checkpoint.formats import MXFP4

_CODES, _EXPONENTS = "_blocks", "_scales"
_OTHERS = (".weight", ".weight_packed", ".weight_scale")


def joined(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The same tensors, those of codes with their exponents as one.

    Raises CheckpointError if one is missing or does not fit the other, UnsupportedModelError for
    other tensors of bytes.
    """
    found: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        stem = name.removesuffix(_CODES).removesuffix(_EXPONENTS)
        if info.format.name != "U8" or name.endswith(_OTHERS):
            found[name] = info
        elif stem == name:
            raise UnsupportedModelError(
                f"{info.path}: tensor {name!r} has dtype 'U8', which Loire reads from safetensors "
                f"as codes and exponents of MXFP4 only"
            )
        else:
            found[stem] = _joined(stem, tensors)
    return found


def _joined(stem: str, tensors: Mapping[str, TensorInfo]) -> TensorInfo:
    parts = [tensors.get(stem + ending) for ending in (_CODES, _EXPONENTS)]
    codes, exponents = parts
    if codes is None or exponents is None:
        ending = _CODES if codes is None else _EXPONENTS
        raise CheckpointError(f"tensor '{stem}{ending}' is missing")
    fits = len(codes.shape) == 4 and codes.shape[3] == 16 and codes.shape[:3] == exponents.shape
    if not fits or exponents.format.name != "U8" or codes.format.name != "U8":
        raise CheckpointError(
            f"{codes.path}: tensors {codes.name!r} and {exponents.name!r} have the shapes "
            f"{codes.shape} and {exponents.shape}, which are no codes and exponents of MXFP4"
        )
    *outer, groups, _ = codes.shape
    shape = (*outer, groups * MXFP4.block_elements)
    return replace(codes, name=stem, shape=shape, format=MXFP4, exponents=exponents)
