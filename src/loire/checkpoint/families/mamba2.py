"""What the families with layers of Mamba-2 share, above all in their GGUF files.

The converter stores -exp(A_log), A and D as columns, the norm a row for each group, and the filters
without the dimension that is 1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from loire.base.errors import CheckpointError, UnsupportedModelError
from loire.checkpoint.checkpoint import TensorInfo
from loire.checkpoint.description import ModelDescription
from loire.checkpoint.families.common import MAX_HEADS
from loire.checkpoint.families.gguf_fields import GGUFSource
from loire.checkpoint.fields import Fields
from loire.checkpoint.recurrent_mixers import Mamba2Description

KINDS: Mapping[str, str] = {
    "mamba": "mamba",
    "linear_attention": "mamba",
    "attention": "attention",
    "full_attention": "attention",
    "mlp": "mlp",
    "moe": "moe",
}
"""What config.json calls kinds of layers -> ours."""


def mamba2(source: str, *, num_heads: int, num_groups: int, **settings: Any) -> Mamba2Description:
    """A description; source names the file. Raises CheckpointError where numbers do not fit."""
    if num_heads % num_groups:
        raise CheckpointError(
            f"{source}: {num_heads} heads of Mamba-2 are not a multiple of {num_groups} groups"
        )
    return Mamba2Description(num_heads=num_heads, num_groups=num_groups, **settings)


def step_limits(fields: Fields) -> tuple[float, float]:
    """The least and the most step, by time_step_limit."""
    given = fields.values.get("time_step_limit")
    if given is None:
        return 0.0, math.inf
    limits = [_number(value) for value in given] if isinstance(given, list) else []
    if len(limits) != 2 or not 0.0 <= limits[0] <= limits[1]:
        raise fields.wrong("time_step_limit", given, "two numbers, the least first")
    return limits[0], limits[1]


def _number(value: object) -> float:
    """Infinity is no number of JSON; transformers writes it as an object."""
    if isinstance(value, Mapping) and value.get("__float__") == "Infinity":
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if abs(value) < 2**63 else math.inf


def kinds(fields: Fields, key: str, given: object, known: Sequence[str]) -> tuple[str, ...]:
    """Of each layer, by the list under a key: some of KINDS' values."""
    found = [KINDS.get(str(kind)) for kind in given] if isinstance(given, list) else []
    if not found or any(kind not in known for kind in found):
        names = ", ".join(name for name, kind in KINDS.items() if kind in known)
        raise fields.wrong(key, given, f"a list of {names}")
    return tuple(kind for kind in found if kind is not None)


def check_silu(fields: Fields, key: str) -> None:
    """Raises UnsupportedModelError where Mamba-2 has another activation."""
    name = fields.text(key, "silu")
    if name not in ("silu", "swish"):
        raise UnsupportedModelError(
            f"{fields.source}: {key} {name!r} is not supported with layers of Mamba-2"
        )


def gguf_mamba2(source: GGUFSource, first: int) -> Mamba2Description:
    """By the metadata, and the tensors of layer `first`."""
    own = source.own
    num_heads = own.integer("ssm.time_step_rank", high=MAX_HEADS)
    size = own.integer("ssm.inner_size")
    if size % num_heads:
        raise own.wrong("ssm.inner_size", size, f"a multiple of {num_heads} heads")
    return mamba2(
        own.source,
        num_heads=num_heads,
        num_groups=own.integer("ssm.group_count"),
        head_dim=size // num_heads,
        state_dim=own.integer("ssm.state_size", high=4096),
        filter_width=own.integer("ssm.conv_kernel", low=2, high=64),
        filter_bias=source.has(f"blk.{first}.ssm_conv1d.bias"),
        bias=source.has(f"blk.{first}.ssm_in.bias"),
        decay_is_log=False,
    )


GGUF_NAMES: Mapping[str, str | None] = {
    "ssm_in": "mamba.in_proj",
    "ssm_conv1d": "mamba.conv1d",
    "ssm_dt": "mamba.dt",
    "ssm_a": "mamba.A_log",
    "ssm_d": "mamba.D",
    "ssm_norm": "mamba.norm",
    "ssm_out": "mamba.out_proj",
}


def gguf_adjusted(tensor: TensorInfo, part: str, description: ModelDescription) -> TensorInfo:
    """Vectors that the file has in two dimensions."""
    if part in ("ssm_a", "ssm_d", "ssm_norm") and len(tensor.shape) == 2:
        return replace(tensor, shape=(math.prod(tensor.shape),))
    return tensor
