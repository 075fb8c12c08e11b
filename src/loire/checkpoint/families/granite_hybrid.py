"""Granite 4: Mamba-2 in most layers, attention without positions in some; an MLP that every token
goes through, beside experts or alone; and Granite's multipliers.

Models of this kind without layers of Mamba-2 have rotary embeddings, and GGUF files of Granite 3.
"""

from collections.abc import Sequence
from dataclasses import replace

from loire.base.errors import CheckpointError
from loire.checkpoint.checkpoint import TensorInfo
from loire.checkpoint.description import ModelDescription
from loire.checkpoint.families import config_fields, gguf_fields, granite
from loire.checkpoint.families.common import MAX_HEADS, dense, without_rope
from loire.checkpoint.families.family import Family, GGUFFamily
from loire.checkpoint.families.gguf_fields import GGUFSource
from loire.checkpoint.families.mamba2 import (
    GGUF_NAMES,
    check_silu,
    gguf_adjusted,
    gguf_mamba2,
    kinds,
    mamba2,
    step_limits,
)
from loire.checkpoint.feed_forward import GatedMLPDescription
from loire.checkpoint.fields import Fields
from loire.checkpoint.recurrent_mixers import Mamba2Description


def _hybrid(
    description: ModelDescription, is_mamba: Sequence[bool], mixer: Mamba2Description
) -> ModelDescription:
    """Mamba-2 in the place of the attention that other layers do not have."""
    pairs = zip(description.layers, is_mamba, strict=True)
    layers = tuple(replace(layer, mixer=mixer) if other else layer for layer, other in pairs)
    return replace(description, layers=layers)


def _mamba2(fields: Fields, hidden_size: int) -> Mamba2Description:
    check_silu(fields, "hidden_act")
    heads, size = (
        fields.integer("mamba_n_heads", 128, high=MAX_HEADS),
        hidden_size * fields.integer("mamba_expand", 2),
    )
    head_dim = size // heads
    if fields.values.get("mamba_d_head") not in (None, "auto"):
        head_dim = fields.integer("mamba_d_head", high=4096)
    if head_dim * heads != size:
        raise CheckpointError(
            f"{fields.source}: {heads} heads of {head_dim} (mamba_n_heads, mamba_d_head) are not "
            f"mamba_expand times hidden_size, {size}"
        )
    least, most = step_limits(fields)
    return mamba2(
        fields.source,
        num_heads=heads,
        num_groups=fields.integer("mamba_n_groups", 1),
        head_dim=head_dim,
        state_dim=fields.integer("mamba_d_state", 256, high=4096),
        filter_width=fields.integer("mamba_d_conv", 4, low=2, high=64),
        filter_bias=fields.flag("mamba_conv_bias", True),
        bias=fields.flag("mamba_proj_bias", False),
        least_step=least,
        most_step=most,
    )


def _is_mamba(fields: Fields) -> tuple[bool, ...]:
    count, key = config_fields.num_layers(fields), "layer_types"
    if fields.values.get(key) is None:
        key = "layers_block_type"
    given = fields.values.get(key)
    if given is None:
        return (True,) * count
    found = kinds(fields, key, given, ("mamba", "attention"))
    if len(found) != count:
        raise fields.wrong(key, given, f"kinds of {count} layers (num_hidden_layers)")
    return tuple(kind == "mamba" for kind in found)


def _described(fields: Fields) -> ModelDescription:
    is_mamba = _is_mamba(fields)
    bias = fields.flag("attention_bias", False)
    description = dense(
        granite.config_settings(fields, "granitehybrid"),
        (None,) * len(is_mamba),
        qkv_bias=bias,
        output_bias=bias,
    )
    if fields.values.get("position_embedding_type") != "rope":
        description = without_rope(description, range(description.num_layers))
    shared_size = fields.integer("shared_intermediate_size", 1024)
    if fields.integer("num_local_experts", 8, low=0):
        experts = granite.config_experts(fields, description, shared_size)
        layers = tuple(replace(layer, feed_forward=experts) for layer in description.layers)
    else:
        mlp = GatedMLPDescription(intermediate_size=shared_size, name="mlp.shared_expert")
        layers = tuple(replace(layer, feed_forward=mlp) for layer in description.layers)
    description = replace(description, layers=layers)
    if not any(is_mamba):
        return description
    return _hybrid(description, is_mamba, _mamba2(fields, description.hidden_size))


def _gguf(source: GGUFSource) -> ModelDescription:
    is_mamba = [source.has(f"blk.{i}.ssm_in.weight") for i in range(source.num_layers)]
    source = gguf_fields.with_largest(source, "attention.head_count_kv")
    common = granite.gguf_settings(source)
    attention = next((i for i, other in enumerate(is_mamba) if not other), 0)
    common.layer.update(
        qkv_bias=source.has(f"blk.{attention}.attn_q.bias"),
        output_bias=source.has(f"blk.{attention}.attn_output.bias"),
    )
    description = dense(common, (None,) * len(is_mamba))
    if not source.own.flag("rope.scaling.finetuned", False):
        description = without_rope(description, range(description.num_layers))
    description = granite.with_gguf_experts(source, description)
    if not any(is_mamba):
        return description
    return _hybrid(description, is_mamba, gguf_mamba2(source, is_mamba.index(True)))


def _gguf_adjusted(tensor: TensorInfo, part: str, description: ModelDescription) -> TensorInfo:
    if part in ("attn_q", "attn_k") and description.attentions:
        return gguf_fields.interleaved_queries_and_keys(tensor, part, description)
    return gguf_adjusted(tensor, part, description)


GRANITE_MOE_HYBRID = Family(
    model_type="granitemoehybrid",
    describe=_described,
    common_name=granite.common_name,
    gguf=GGUFFamily(
        architecture="granitehybrid",
        describe=_gguf,
        names={**GGUF_NAMES, **granite.GGUF_SHARED},
        adjusted=_gguf_adjusted,
    ),
)
