"""Llama, and Mistral, whose GGUF files are Llama's."""

from loire.checkpoint.description import ModelDescription, with_experts
from loire.checkpoint.families import config_fields, gguf_fields
from loire.checkpoint.families.common import dense
from loire.checkpoint.families.family import Family, GGUFFamily
from loire.checkpoint.families.gguf_fields import GGUFSource
from loire.checkpoint.fields import Fields


def _llama(fields: Fields) -> ModelDescription:
    fields = config_fields.with_defaults(fields, bos_token_id=1, eos_token_id=2)
    bias = fields.flag("attention_bias", False)
    return dense(
        config_fields.common(fields, "llama"),
        (None,) * config_fields.num_layers(fields),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
    )


def _mistral(fields: Fields) -> ModelDescription:
    fields = config_fields.with_defaults(
        fields, bos_token_id=1, eos_token_id=2, sliding_window=4096
    )
    common = config_fields.common(fields, "mistral", max_positions=131072, kv_heads=8)
    return dense(common, config_fields.uniform_windows(fields))


def _gguf(source: GGUFSource) -> ModelDescription:
    """Mixtral's files are of this architecture too."""
    description = dense(gguf_fields.common(source), gguf_fields.uniform_windows(source))
    return with_experts(description, gguf_fields.experts(source, description))


LLAMA = Family(
    model_type="llama",
    describe=_llama,
    gguf=GGUFFamily(
        architecture="llama", describe=_gguf, adjusted=gguf_fields.interleaved_queries_and_keys
    ),
)
MISTRAL = Family(
    model_type="mistral",
    text_of=("mistral3",),
    describe=_mistral,
)
