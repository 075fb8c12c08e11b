"""The dense models of Qwen2, Qwen2.5 and Qwen3."""

from loire.checkpoint.description import ModelDescription
from loire.checkpoint.families import config_fields, gguf_fields
from loire.checkpoint.families.common import dense
from loire.checkpoint.families.family import Family, GGUFFamily
from loire.checkpoint.families.gguf_fields import GGUFSource
from loire.checkpoint.fields import Fields


def _qwen_windows(fields: Fields) -> tuple[int | None, ...]:
    if not fields.flag("use_sliding_window", False):
        return (None,) * config_fields.num_layers(fields)
    fields = config_fields.with_defaults(fields, sliding_window=4096)
    first = fields.integer("max_window_layers", 28, low=0)
    return config_fields.windows(fields, lambda layer: layer >= first)


def _qwen2(fields: Fields) -> ModelDescription:
    common = config_fields.common(fields, "qwen2", max_positions=32768, kv_heads=32)
    return dense(common, _qwen_windows(fields), qkv_bias=True)


def _qwen3(fields: Fields) -> ModelDescription:
    bias = fields.flag("attention_bias", False)
    return dense(
        config_fields.common(fields, "qwen3", max_positions=32768, head_dim=128, kv_heads=32),
        _qwen_windows(fields),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
    )


def _gguf(source: GGUFSource) -> ModelDescription:
    return dense(gguf_fields.common(source), gguf_fields.uniform_windows(source))


QWEN2 = Family(
    model_type="qwen2",
    describe=_qwen2,
    gguf=GGUFFamily(architecture="qwen2", describe=_gguf),
)
QWEN3 = Family(
    model_type="qwen3",
    describe=_qwen3,
    gguf=GGUFFamily(architecture="qwen3", describe=_gguf),
)
