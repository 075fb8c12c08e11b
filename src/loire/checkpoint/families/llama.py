"""Llama, and Mistral, whose GGUF files are Llama's."""

from dataclasses import replace

from loire.checkpoint.checkpoint import TensorInfo
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


def _interleaved(tensor: TensorInfo, part: str, description: ModelDescription) -> TensorInfo:
    """The converter permutes the rows of queries and keys, biases included."""
    attention = description.attentions[0]
    heads = {"attn_q": attention.num_heads, "attn_k": attention.num_kv_heads}
    return replace(tensor, interleaved_heads=heads.get(part, 0))


LLAMA = Family(
    model_type="llama",
    describe=_llama,
    gguf=GGUFFamily(architecture="llama", describe=_gguf, adjusted=_interleaved),
)
MISTRAL = Family(model_type="mistral", describe=_mistral)
