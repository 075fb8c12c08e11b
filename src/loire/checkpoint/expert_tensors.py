"""Tensors of experts under their common names: each expert's matrices by themselves.

    model.layers.N.mlp.gate.weight                                       the router
    model.layers.N.mlp.experts.M.{gate,up,down}_proj.{weight,bias}       one expert
                                 or gate_up_proj

Some files have those of all experts as one tensor, one expert behind the other: it is taken apart.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from loire.base.errors import CheckpointError
from loire.checkpoint.checkpoint import TensorInfo

_TOGETHER = re.compile(r"(.*\.mlp\.experts)\.((?:gate|up|gate_up|down)_proj)(\.weight|\.bias|)")


def taken_apart(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The same tensors, those of all experts together ([experts, out, in], or where that lies with
    inputs first [experts, in, out]; biases [experts, out]) as one of each.

    Raises CheckpointError for one of another number of dimensions.
    """
    found: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        match = _TOGETHER.fullmatch(name)
        if match is None:
            found[name] = info
            continue
        is_bias = match[3] == ".bias"
        dimensions = 2 if is_bias else 3
        if len(info.shape) != dimensions or not info.shape[0]:
            raise CheckpointError(
                f"{info.path}: tensor {name!r} of all experts has the shape {info.shape}, but "
                f"should have {dimensions} dimensions"
            )
        shape = info.shape[:0:-1] if info.inputs_first else info.shape[1:]
        count, num_bytes = info.shape[0], info.num_bytes // info.shape[0]
        for index in range(count):
            own = f"{match[1]}.{index}.{match[2]}{match[3] or '.weight'}"
            found[own] = replace(
                info,
                name=own,
                shape=shape,
                offset=info.offset + index * num_bytes,
                num_bytes=num_bytes,
                exponents=None if info.exponents is None else _one_of(info.exponents, index),
            )
    return found


def _one_of(info: TensorInfo, index: int) -> TensorInfo:
    """One slice of a tensor along its first dimension."""
    num_bytes = info.num_bytes // info.shape[0]
    return replace(
        info, shape=info.shape[1:], offset=info.offset + index * num_bytes, num_bytes=num_bytes
    )
