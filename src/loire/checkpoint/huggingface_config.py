"""config.json of the supported families, as a ModelDescription.

Each family is a function that says how it differs from Llama. Defaults for missing keys are those
of transformers' configuration classes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from loire.base.errors import CheckpointError, UnsupportedModelError
from loire.checkpoint.description import ModelDescription, dense_layers, with_experts
from loire.checkpoint.feed_forward import Activation, ExpertsDescription, GatedMLPDescription
from loire.checkpoint.fields import MAX_POSITIONS, Fields
from loire.checkpoint.rope_config import parse_rope

MAX_LAYERS = 10_000
MAX_EXPERTS = 4096
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
}


_OUTER = ("bos_token_id", "eos_token_id", "tie_word_embeddings", "dtype", "torch_dtype",
          "quantization_config")  # fmt: skip
"""What a model of text and vision says for both, outside its text_config."""


def describe(config: Mapping[str, Any], source: str) -> ModelDescription:
    """The description of a model from its parsed config.json; source names it in errors.

    Raises UnsupportedModelError for another family or feature, CheckpointError for nonsense.
    """
    fields = Fields(config, source)
    model_type = fields.text("model_type")
    if model_type == "gemma3":  # text and vision; the text part is a gemma3_text
        text = {key: value for key, value in config.items() if key in _OUTER}
        text |= _section(config, "text_config")
        return describe({**text, "model_type": "gemma3_text"}, f"{source}, text_config")
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"{source}: model type {model_type!r} is not supported; "
            f"Loire runs {', '.join(sorted(FAMILIES))}"
        )
    if config.get("quantization_config"):
        method = _section(config, "quantization_config").get("quant_method", "unknown")
        raise UnsupportedModelError(
            f"{source}: the weights are quantized ({method}), which Loire does not read from "
            f"safetensors; use the unquantized model or a GGUF file"
        )
    return FAMILIES[model_type](fields)


def _section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    return value if isinstance(value, Mapping) else {}


class _Common(NamedTuple):
    """Settings of ModelDescription and of dense_layers()."""

    model: dict[str, Any]
    layer: dict[str, Any]


def _dense(common: _Common, windows: Sequence[int | None], **changes: Any) -> ModelDescription:
    """Layers that are alike but for their windows; changes are settings of dense_layers()."""
    layers = dense_layers(windows, **{**common.layer, **changes})
    return ModelDescription(**common.model, layers=layers)


def _common(
    fields: Fields,
    architecture: str,
    *,
    tied: bool = False,
    max_positions: int = 2048,
    theta: float = 10000.0,
    eps: float = 1e-6,
    head_dim: int | None = None,
    kv_heads: int | None = None,
    activation_key: str = "hidden_act",
    activation: str = "silu",
    rope_layer_type: str | None = None,
) -> _Common:
    """What all families share, with a family's own defaults.

    kv_heads is for a missing num_key_value_heads; null means as many as there are query heads.
    """
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if fields.values.get("head_dim") is None and head_dim is None and hidden % heads:
        raise CheckpointError(
            f"{fields.source}: hidden_size {hidden} is not a multiple of "
            f"num_attention_heads {heads}, and there is no head_dim"
        )
    dim = fields.integer("head_dim", head_dim or hidden // heads, high=4096)
    if kv_heads is None or "num_key_value_heads" in fields.values:
        kv_heads = heads
    num_kv_heads = fields.integer("num_key_value_heads", kv_heads)
    if heads % num_kv_heads:
        raise CheckpointError(
            f"{fields.source}: num_attention_heads {heads} is not a multiple of "
            f"num_key_value_heads {num_kv_heads}"
        )
    positions = fields.integer("max_position_embeddings", max_positions, high=MAX_POSITIONS)
    name = fields.text(activation_key, activation)
    if name not in _ACTIVATIONS:
        raise UnsupportedModelError(f"{fields.source}: activation {name!r} is not supported")
    model = {
        "architecture": architecture,
        "vocab_size": fields.integer("vocab_size"),
        "hidden_size": hidden,
        "max_positions": positions,
        "norm_eps": fields.number("rms_norm_eps", eps, low=0.0, high=1.0),
        "tied_embeddings": fields.flag("tie_word_embeddings", tied),
        "bos_token_id": fields.optional_integer("bos_token_id", low=0),
        "eos_token_ids": token_ids(fields, "eos_token_id"),
        "dtype": str(fields.values.get("dtype") or fields.values.get("torch_dtype") or "float32"),
    }
    layer = {
        "num_heads": heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": dim,
        "intermediate_size": fields.integer("intermediate_size"),
        "activation": _ACTIVATIONS[name],
        "rope": parse_rope(
            fields,
            head_dim=dim,
            max_positions=positions,
            default_theta=theta,
            layer_type=rope_layer_type,
        ),
    }
    return _Common(model, layer)


def token_ids(fields: Fields, key: str) -> tuple[int, ...]:
    """An id or a list of ids, as eos_token_id may be; empty where the key is missing or null."""
    value = fields.values.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(item) is int and 0 <= item < 2**31 for item in ids):
        raise fields.wrong(key, value, "a token id or a list of them")
    return tuple(ids)


def _windows(fields: Fields, is_local: Callable[[int], bool]) -> tuple[int | None, ...]:
    """Windows per layer: by layer_types where the config lists them, else by the family's rule."""
    window = fields.optional_integer("sliding_window")
    num_layers = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    types = fields.values.get("layer_types")
    if types is None:
        return tuple(window if is_local(layer) else None for layer in range(num_layers))
    known = ("full_attention", "sliding_attention")
    if (
        not isinstance(types, list)
        or len(types) != num_layers
        or any(kind not in known for kind in types)
    ):
        raise fields.wrong("layer_types", types, f"{num_layers} of {', '.join(known)}")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _uniform_windows(fields: Fields) -> tuple[int | None, ...]:
    """The same window in all layers, for families whose layers are all alike."""
    num_layers = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    types = fields.values.get("layer_types")
    if isinstance(types, list) and len({str(kind) for kind in types}) > 1:
        raise UnsupportedModelError(
            f"{fields.source}: layers of different kinds (layer_types) are not supported in "
            f"this family"
        )
    return (fields.optional_integer("sliding_window"),) * num_layers


def _with_defaults(fields: Fields, **defaults: Any) -> Fields:
    """Defaults for keys that are missing; a null stays."""
    return Fields({**defaults, **fields.values}, fields.source)


def _num_layers(fields: Fields) -> int:
    return fields.integer("num_hidden_layers", high=MAX_LAYERS)


def _llama(fields: Fields) -> ModelDescription:
    fields = _with_defaults(fields, bos_token_id=1, eos_token_id=2)
    bias = fields.flag("attention_bias", False)
    return _dense(
        _common(fields, "llama"),
        (None,) * _num_layers(fields),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
    )


def _mistral(fields: Fields) -> ModelDescription:
    fields = _with_defaults(fields, bos_token_id=1, eos_token_id=2, sliding_window=4096)
    common = _common(fields, "mistral", max_positions=131072, kv_heads=8)
    return _dense(common, _uniform_windows(fields))


def _qwen_windows(fields: Fields) -> tuple[int | None, ...]:
    if not fields.flag("use_sliding_window", False):
        return (None,) * _num_layers(fields)
    fields = _with_defaults(fields, sliding_window=4096)
    first = fields.integer("max_window_layers", 28, low=0)
    return _windows(fields, lambda layer: layer >= first)


def _qwen2(fields: Fields) -> ModelDescription:
    common = _common(fields, "qwen2", max_positions=32768, kv_heads=32)
    return _dense(common, _qwen_windows(fields), qkv_bias=True)


def _qwen3(fields: Fields) -> ModelDescription:
    bias = fields.flag("attention_bias", False)
    return _dense(
        _common(fields, "qwen3", max_positions=32768, head_dim=128, kv_heads=32),
        _qwen_windows(fields),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
    )


def _gemma(fields: Fields, architecture: str, **defaults: Any) -> _Common:
    if fields.flag("use_bidirectional_attention", False):
        raise UnsupportedModelError(f"{fields.source}: bidirectional attention is not supported")
    fields = _with_defaults(fields, bos_token_id=2, eos_token_id=1)
    bias = fields.flag("attention_bias", False)
    common = _common(
        fields,
        architecture,
        tied=True,
        head_dim=256,
        kv_heads=4,
        activation_key="hidden_activation",
        activation="gelu_pytorch_tanh",
        **defaults,
    )
    scalar = fields.number("query_pre_attn_scalar", 256, low=1e-3, high=1e6)
    common.model.update(
        norm_offset=1.0,
        embedding_scale=common.model["hidden_size"] ** 0.5,
        logit_softcap=fields.optional_number("final_logit_softcapping", low=1e-3, high=1e6),
    )
    common.layer.update(
        qkv_bias=bias,
        output_bias=bias,
        norms="around",
        query_scale=scalar**-0.5,
        attention_softcap=fields.optional_number("attn_logit_softcapping", low=1e-3, high=1e6),
    )
    return common


def _gemma2(fields: Fields) -> ModelDescription:
    filled = _with_defaults(
        fields,
        sliding_window=4096,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    )
    common = _gemma(filled, "gemma2", max_positions=8192)
    return _dense(common, _windows(filled, lambda layer: layer % 2 == 0))


def _gemma3(fields: Fields) -> ModelDescription:
    # The text_config of the published models leaves out whatever has its default value.
    filled = _with_defaults(
        fields,
        vocab_size=262208,
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_attention_heads=8,
        sliding_window=4096,
    )
    pattern = filled.integer("sliding_window_pattern", 6)
    common = _gemma(
        filled, "gemma3", max_positions=131072, theta=1e6, rope_layer_type="full_attention"
    )
    windows = _windows(filled, lambda layer: bool((layer + 1) % pattern))
    if filled.values["sliding_window"] is None:
        # Which rotary embedding a layer has goes by its window.
        raise filled.wrong("sliding_window", None, "a number of tokens")
    local = {key: value for key, value in fields.values.items() if key != "rope_scaling"}
    local["rope_theta"] = fields.values.get("rope_local_base_freq")
    local_rope = parse_rope(
        Fields(local, fields.source),
        head_dim=common.layer["head_dim"],
        max_positions=common.model["max_positions"],
        default_theta=10000.0,
        layer_type="sliding_attention",
    )
    return _dense(common, windows, qk_norm=True, local_rope=local_rope)


def _phi3(fields: Fields) -> ModelDescription:
    fields = _with_defaults(
        fields, bos_token_id=1, eos_token_id=32000, original_max_position_embeddings=4096
    )
    common = _common(fields, "phi3", max_positions=4096, eps=1e-5)
    return _dense(common, _uniform_windows(fields))


def _experts(
    fields: Fields, description: ModelDescription, *, count_key: str, top_k: int, **settings: Any
) -> ExpertsDescription:
    """Experts in the place of the MLP that every layer of a description has."""
    mlp = description.layers[0].feed_forward
    assert isinstance(mlp, GatedMLPDescription)
    count = fields.integer(count_key, high=MAX_EXPERTS)
    chosen = fields.integer("num_experts_per_tok", top_k)
    if chosen > count:
        raise fields.wrong("num_experts_per_tok", chosen, f"at most {count_key}, {count}")
    settings = {"intermediate_size": mlp.intermediate_size, **settings}
    return ExpertsDescription(
        num_experts=count, top_k=chosen, activation=mlp.activation, **settings
    )


def _mixtral(fields: Fields) -> ModelDescription:
    fields = _with_defaults(fields, bos_token_id=1, eos_token_id=2, num_local_experts=8)
    common = _common(fields, "mixtral", max_positions=131072, kv_heads=8, eps=1e-5, theta=1e6)
    dense = _dense(common, _uniform_windows(fields))
    experts = _experts(fields, dense, count_key="num_local_experts", top_k=2)
    return with_experts(dense, [experts] * dense.num_layers)


def _qwen3_moe(fields: Fields) -> ModelDescription:
    bias = fields.flag("attention_bias", False)
    window = None
    if fields.flag("use_sliding_window", False):
        window = _with_defaults(fields, sliding_window=4096).optional_integer("sliding_window")
    num_layers = _num_layers(fields)
    dense = _dense(
        _common(_with_defaults(fields, intermediate_size=6144), "qwen3moe", max_positions=32768,
                kv_heads=4),
        (window,) * num_layers,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
    )  # fmt: skip
    # (num_local_experts is what transformers writes, num_experts what the makers do.)
    key = "num_local_experts" if "num_local_experts" in fields.values else "num_experts"
    experts = _experts(
        _with_defaults(fields, num_experts=128),
        dense,
        count_key=key,
        top_k=8,
        intermediate_size=fields.integer("moe_intermediate_size", 768),
        renormalise=fields.flag("norm_topk_prob", False),
    )
    step = fields.integer("decoder_sparse_step", 1)
    dense_layers = fields.values.get("mlp_only_layers") or []
    if not isinstance(dense_layers, list) or not all(type(i) is int for i in dense_layers):
        raise fields.wrong("mlp_only_layers", dense_layers, "a list of layers")
    return with_experts(
        dense,
        [
            None if index in dense_layers or (index + 1) % step else experts
            for index in range(num_layers)
        ],
    )


FAMILIES: dict[str, Callable[[Fields], ModelDescription]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "phi3": _phi3,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
}
"""model_type of config.json -> how the family differs from Llama."""
