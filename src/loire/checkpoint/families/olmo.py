"""OLMo 2 and OLMo 3: norms after each part and none before, norms over all heads at once."""

from dataclasses import replace

from loire.checkpoint.description import ModelDescription
from loire.checkpoint.families import config_fields, gguf_fields
from loire.checkpoint.families.common import dense
from loire.checkpoint.families.family import Family, GGUFFamily
from loire.checkpoint.families.gguf_fields import GGUFSource
from loire.checkpoint.fields import Fields
from loire.checkpoint.rope_config import parse_rope

END_TOKEN = 50279
"""Where config.json names none."""
_SETTINGS = {"norms": "after", "qk_norm": True, "norms_span_heads": True}


def _olmo2(fields: Fields) -> ModelDescription:
    fields = config_fields.with_defaults(fields, eos_token_id=END_TOKEN)
    bias = fields.flag("attention_bias", False)
    windows = (None,) * config_fields.num_layers(fields)
    common = config_fields.common(fields, "olmo2", eps=1e-5)
    return dense(common, windows, qkv_bias=bias, output_bias=bias, **_SETTINGS)


def _olmo3(fields: Fields) -> ModelDescription:
    fields = config_fields.with_defaults(fields, eos_token_id=END_TOKEN, sliding_window=4096)
    bias = fields.flag("attention_bias", False)
    common = config_fields.common(
        fields, "olmo3", eps=1e-5, theta=5e5, rope_layer_type="full_attention"
    )
    # Scaling, where older files have it outside of a kind of layer, is of the others alone.
    local = {key: value for key, value in fields.values.items() if key != "rope_scaling"}
    local_rope = parse_rope(
        Fields(local, fields.source),
        head_dim=common.layer["head_dim"],
        max_positions=common.model["max_positions"],
        default_theta=5e5,
        layer_type="sliding_attention",
    )
    return dense(
        common,
        config_fields.windows(fields, lambda layer: bool((layer + 1) % 4)),
        local_rope=local_rope,
        qkv_bias=bias,
        output_bias=bias,
        **_SETTINGS,
    )


def _gguf(source: GGUFSource) -> ModelDescription:
    common = gguf_fields.common(source)
    rope = common.layer["rope"]
    theta = source.own.number("rope.freq_base_swa", rope.theta, low=1.5, high=1e12)
    # The layers with a window are not stretched.
    local_rope = replace(gguf_fields.plain_rope(rope), theta=theta)
    windows = gguf_fields.windows(source, period=4)
    return dense(common, windows, local_rope=local_rope, **_SETTINGS)


OLMO2 = Family(
    model_type="olmo2",
    describe=_olmo2,
    gguf=GGUFFamily(architecture="olmo2", describe=_gguf, names=gguf_fields.NORMS_AROUND),
)
OLMO3 = Family(model_type="olmo3", describe=_olmo3)
