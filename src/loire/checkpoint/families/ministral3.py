"""Ministral 3: Mistral with YaRN, and queries that grow with their position.

GGUF files of this architecture may be those of other models in the same wrapper, without either.
"""

from dataclasses import replace

from loire.checkpoint.description import ModelDescription
from loire.checkpoint.families import config_fields, gguf_fields
from loire.checkpoint.families.common import dense
from loire.checkpoint.families.family import Family, GGUFFamily
from loire.checkpoint.families.gguf_fields import GGUFSource
from loire.checkpoint.fields import Fields
from loire.checkpoint.mixers import QueryGrowth

_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
"""Where config.json says nothing."""


def _ministral3(fields: Fields) -> ModelDescription:
    fields = config_fields.with_defaults(fields, bos_token_id=1, eos_token_id=2)
    if not fields.values.get("rope_scaling") and not fields.values.get("rope_parameters"):
        fields = Fields({**fields.values, "rope_parameters": _ROPE}, fields.source)
    common = config_fields.common(
        fields, "ministral3", max_positions=262144, head_dim=128, kv_heads=8, eps=1e-5, theta=1e6
    )
    key = "rope_scaling" if fields.values.get("rope_scaling") else "rope_parameters"
    rope = fields.section(key)
    beta = rope.optional_number("llama_4_scaling_beta", low=0.0, high=100.0)
    growth = QueryGrowth(beta, rope.integer("original_max_position_embeddings")) if beta else None
    return dense(common, config_fields.uniform_windows(fields), query_growth=growth)


def _gguf(source: GGUFSource) -> ModelDescription:
    common, own = gguf_fields.common(source), source.own
    rope = common.layer["rope"]
    if rope.scaling == "yarn":
        # These are trained without YaRN's factor of attention.
        common.layer["rope"] = replace(rope, attention_factor=1.0)
    beta = own.optional_number("attention.temperature_scale", low=0.0, high=100.0)
    growth = None
    if beta:
        growth = QueryGrowth(beta, own.integer("rope.scaling.original_context_length"))
    return dense(common, gguf_fields.uniform_windows(source), query_growth=growth)


MINISTRAL3 = Family(
    model_type="ministral3",
    describe=_ministral3,
    gguf=GGUFFamily(
        architecture="mistral3", describe=_gguf, adjusted=gguf_fields.interleaved_queries_and_keys
    ),
)
