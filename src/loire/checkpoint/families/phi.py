"""Phi-3 and Phi-4, whose projections are fused in both kinds of file."""

from loire.checkpoint.description import ModelDescription
from loire.checkpoint.families import config_fields, gguf_fields
from loire.checkpoint.families.common import dense
from loire.checkpoint.families.family import Family, GGUFFamily
from loire.checkpoint.families.gguf_fields import GGUFSource
from loire.checkpoint.fields import Fields


def _phi3(fields: Fields) -> ModelDescription:
    fields = config_fields.with_defaults(
        fields, bos_token_id=1, eos_token_id=32000, original_max_position_embeddings=4096
    )
    common = config_fields.common(fields, "phi3", max_positions=4096, eps=1e-5)
    return dense(common, config_fields.uniform_windows(fields))


def _gguf(source: GGUFSource) -> ModelDescription:
    return dense(gguf_fields.common(source), gguf_fields.uniform_windows(source))


PHI3 = Family(
    model_type="phi3",
    describe=_phi3,
    gguf=GGUFFamily(architecture="phi3", describe=_gguf, names={"ffn_up": "mlp.gate_up_proj"}),
)
