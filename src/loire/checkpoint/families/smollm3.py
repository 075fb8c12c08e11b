"""SmolLM3: Llama with layers that are not told positions (NoPE)."""

from loire.checkpoint.description import ModelDescription
from loire.checkpoint.families import config_fields, gguf_fields
from loire.checkpoint.families.common import dense, without_rope
from loire.checkpoint.families.family import Family, GGUFFamily
from loire.checkpoint.families.gguf_fields import GGUFSource
from loire.checkpoint.fields import Fields


def _smollm3(fields: Fields) -> ModelDescription:
    filled = config_fields.with_defaults(fields, bos_token_id=128000, eos_token_id=128001)
    common = config_fields.common(
        filled, "smollm3", tied=True, max_positions=32768, theta=2e6, kv_heads=4
    )
    bias = fields.flag("attention_bias", False)
    without = _layers_without_rope(fields)
    windows: tuple[int | None, ...] = (None,) * config_fields.num_layers(fields)
    if fields.flag("use_sliding_window", False):
        windows = config_fields.windows(fields, lambda layer: layer in without)
    description = dense(
        common,
        windows,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
    )
    return without_rope(description, without)


def _layers_without_rope(fields: Fields) -> set[int]:
    num_layers = config_fields.num_layers(fields)
    marks = fields.values.get("no_rope_layers")
    if marks is None:
        every = fields.integer("no_rope_layer_interval", 4)
        return {layer for layer in range(num_layers) if (layer + 1) % every == 0}
    # (A mark of 1 means that the layer has it.)
    if (
        not isinstance(marks, list)
        or len(marks) < num_layers
        or any(m not in (0, 1) for m in marks)
    ):
        raise fields.wrong("no_rope_layers", marks, f"{num_layers} of 0 and 1")
    return {layer for layer in range(num_layers) if not marks[layer]}


def _gguf(source: GGUFSource) -> ModelDescription:
    description = dense(gguf_fields.common(source), (None,) * source.num_layers)
    # The files do not say it; llama.cpp takes every fourth.
    return without_rope(description, range(3, source.num_layers, 4))


SMOLLM3 = Family(
    model_type="smollm3",
    describe=_smollm3,
    gguf=GGUFFamily(
        architecture="smollm3", describe=_gguf, adjusted=gguf_fields.interleaved_queries_and_keys
    ),
)
