"""Mixtral. Its GGUF files are Llama's."""

import re

from loire.checkpoint.description import ModelDescription, with_experts
from loire.checkpoint.families import config_fields
from loire.checkpoint.families.common import dense
from loire.checkpoint.families.family import Family
from loire.checkpoint.fields import Fields

_MATRICES = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


def _mixtral(fields: Fields) -> ModelDescription:
    fields = config_fields.with_defaults(
        fields, bos_token_id=1, eos_token_id=2, num_local_experts=8
    )
    common = config_fields.common(
        fields, "mixtral", max_positions=131072, kv_heads=8, eps=1e-5, theta=1e6
    )
    description = dense(common, config_fields.uniform_windows(fields))
    experts = config_fields.experts(fields, description, top_k=2)
    return with_experts(description, [experts] * description.num_layers)


def _common_name(name: str) -> str:
    name = name.replace(".block_sparse_moe.gate.", ".mlp.gate.")
    return re.sub(
        r"\.block_sparse_moe\.experts\.(\d+)\.(w[123])\.",
        lambda match: f".mlp.experts.{match[1]}.{_MATRICES[match[2]]}.",
        name,
    )


MIXTRAL = Family(model_type="mixtral", describe=_mixtral, common_name=_common_name)
