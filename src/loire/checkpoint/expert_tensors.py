"""Tensors of experts under their common names: each expert's matrices by themselves.

    model.layers.N.mlp.gate.weight                                       the router
    model.layers.N.mlp.experts.M.{gate,up,down}_proj.weight              one expert

Some files have those of all experts as one tensor, one expert behind the other: it is taken apart.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from loire.base.errors import CheckpointError
from loire.checkpoint.checkpoint import TensorInfo

_TOGETHER = re.compile(r"(.*\.mlp\.experts)\.((?:gate|up|gate_up|down)_proj)(\.weight)?")


def taken_apart(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The same tensors, those of all experts together [experts, out, in] as one of each.

    Raises CheckpointError for one of another number of dimensions.
    """
    found: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        match = _TOGETHER.fullmatch(name)
        if match is None:
            found[name] = info
            continue
        if len(info.shape) != 3 or not info.shape[0]:
            raise CheckpointError(
                f"{info.path}: tensor {name!r} of all experts has the shape {info.shape}, but "
                f"should have three dimensions"
            )
        count, num_bytes = info.shape[0], info.num_bytes // info.shape[0]
        for index in range(count):
            own = f"{match[1]}.{index}.{match[2]}.weight"
            found[own] = replace(
                info,
                name=own,
                shape=info.shape[1:],
                offset=info.offset + index * num_bytes,
                num_bytes=num_bytes,
            )
    return found
