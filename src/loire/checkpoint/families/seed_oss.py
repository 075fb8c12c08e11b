"""Seed-OSS: Llama with biases of queries, keys and values."""

from loire.checkpoint.description import ModelDescription
from loire.checkpoint.families import config_fields, gguf_fields
from loire.checkpoint.families.common import dense
from loire.checkpoint.families.family import Family, GGUFFamily
from loire.checkpoint.families.gguf_fields import GGUFSource
from loire.checkpoint.fields import Fields


def _seed_oss(fields: Fields) -> ModelDescription:
    fields = config_fields.with_defaults(fields, bos_token_id=0, eos_token_id=2)
    common = config_fields.common(
        fields, "seed_oss", max_positions=524288, head_dim=128, kv_heads=8
    )
    return dense(
        common,
        (None,) * config_fields.num_layers(fields),
        qkv_bias=fields.flag("attention_bias", True),
        output_bias=fields.flag("attention_out_bias", False),
        mlp_bias=fields.flag("mlp_bias", False),
    )


def _gguf(source: GGUFSource) -> ModelDescription:
    return dense(gguf_fields.common(source), (None,) * source.num_layers)


SEED_OSS = Family(
    model_type="seed_oss",
    describe=_seed_oss,
    gguf=GGUFFamily(
        architecture="seed_oss",
        describe=_gguf,
        names={"post_attention_norm": "post_attention_layernorm"},
    ),
)
