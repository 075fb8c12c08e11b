"""config.json of the supported families, as a ModelDescription.

Each family is a function that says how it differs from Llama. Defaults for missing keys are those
of transformers' configuration classes.
"""

from collections.abc import Callable, Mapping
from typing import Any

from loire.base.errors import CheckpointError, UnsupportedModelError
from loire.checkpoint.description import Activation, ModelDescription
from loire.checkpoint.fields import Fields
from loire.checkpoint.rope_config import parse_rope

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
}


def describe(config: Mapping[str, Any], source: str) -> ModelDescription:
    """The description of a model from its parsed config.json; source names it in errors.

    Raises UnsupportedModelError for another family or feature, CheckpointError for nonsense.
    """
    fields = Fields(config, source)
    model_type = fields.text("model_type")
    if model_type == "gemma3":  # text and vision; the text part is a gemma3_text
        return describe({**_section(config, "text_config"), "model_type": "gemma3_text"}, source)
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
    return ModelDescription(**FAMILIES[model_type](fields))


def _section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    return value if isinstance(value, Mapping) else {}


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
) -> dict[str, Any]:
    """What all families share, with a family's own defaults."""
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if "head_dim" not in fields.values and head_dim is None and hidden % heads:
        raise CheckpointError(
            f"{fields.source}: hidden_size {hidden} is not a multiple of "
            f"num_attention_heads {heads}, and there is no head_dim"
        )
    dim = fields.integer("head_dim", head_dim or hidden // heads, high=4096)
    num_kv_heads = fields.integer("num_key_value_heads", kv_heads or heads)
    if heads % num_kv_heads:
        raise CheckpointError(
            f"{fields.source}: num_attention_heads {heads} is not a multiple of "
            f"num_key_value_heads {num_kv_heads}"
        )
    positions = fields.integer("max_position_embeddings", max_positions)
    num_layers = fields.integer("num_hidden_layers", high=10_000)
    name = fields.text(activation_key, activation)
    if name not in _ACTIVATIONS:
        raise UnsupportedModelError(f"{fields.source}: activation {name!r} is not supported")
    eos = fields.values.get("eos_token_id")
    return {
        "architecture": architecture,
        "vocab_size": fields.integer("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": fields.integer("intermediate_size"),
        "num_layers": num_layers,
        "num_heads": heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": dim,
        "max_positions": positions,
        "norm_eps": fields.number("rms_norm_eps", eps, low=0.0, high=1.0),
        "rope": parse_rope(
            fields,
            head_dim=dim,
            max_positions=positions,
            default_theta=theta,
            layer_type=rope_layer_type,
        ),
        "layer_windows": (None,) * num_layers,
        "activation": _ACTIVATIONS[name],
        "tied_embeddings": fields.flag("tie_word_embeddings", tied),
        "query_scale": dim**-0.5,
        "bos_token_id": fields.optional_integer("bos_token_id", low=0),
        "eos_token_ids": token_ids(eos, fields, "eos_token_id"),
        "dtype": str(fields.values.get("dtype") or fields.values.get("torch_dtype") or "float32"),
    }


def token_ids(value: object, fields: Fields, key: str) -> tuple[int, ...]:
    """An id or a list of ids, as eos_token_id may be."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(item, int) and item >= 0 for item in ids):
        raise fields.wrong(key, value, "a token id or a list of them")
    return tuple(ids)


def _windows(fields: Fields, is_local: Callable[[int], bool]) -> tuple[int | None, ...]:
    """Windows per layer: by layer_types where the config lists them, else by the family's rule."""
    window = fields.optional_integer("sliding_window")
    num_layers = fields.integer("num_hidden_layers")
    types = fields.values.get("layer_types")
    if types is None:
        return tuple(window if is_local(layer) else None for layer in range(num_layers))
    known = {"sliding_attention", "full_attention"}
    if not isinstance(types, list) or len(types) != num_layers or not set(types) <= known:
        raise fields.wrong("layer_types", types, f"{num_layers} of {sorted(known)}")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _llama(fields: Fields) -> dict[str, Any]:
    bias = fields.flag("attention_bias", False)
    return {
        **_common(fields, "llama"),
        "qkv_bias": bias,
        "output_bias": bias,
        "mlp_bias": fields.flag("mlp_bias", False),
    }


def _mistral(fields: Fields) -> dict[str, Any]:
    return {
        **_common(fields, "mistral", max_positions=131072, kv_heads=8),
        "layer_windows": _windows(fields, lambda layer: True),
    }


def _qwen_windows(fields: Fields) -> tuple[int | None, ...]:
    if not fields.flag("use_sliding_window", False):
        return (None,) * fields.integer("num_hidden_layers")
    first = fields.integer("max_window_layers", 28, low=0)
    return _windows(fields, lambda layer: layer >= first)


def _qwen2(fields: Fields) -> dict[str, Any]:
    return {
        **_common(fields, "qwen2", max_positions=32768, kv_heads=32),
        "qkv_bias": True,
        "layer_windows": _qwen_windows(fields),
    }


def _qwen3(fields: Fields) -> dict[str, Any]:
    bias = fields.flag("attention_bias", False)
    return {
        **_common(fields, "qwen3", max_positions=32768, head_dim=128, kv_heads=32),
        "qkv_bias": bias,
        "output_bias": bias,
        "qk_norm": True,
        "layer_windows": _qwen_windows(fields),
    }


def _gemma(fields: Fields, architecture: str, **defaults: Any) -> dict[str, Any]:
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
    return {
        **common,
        "qkv_bias": bias,
        "output_bias": bias,
        "norm_offset": 1.0,
        "sandwich_norms": True,
        "embedding_scale": common["hidden_size"] ** 0.5,
        "query_scale": scalar**-0.5,
    }


def _gemma2(fields: Fields) -> dict[str, Any]:
    values = {"sliding_window": 4096, **fields.values}
    filled = Fields(values, fields.source)
    return {
        **_gemma(filled, "gemma2", max_positions=8192),
        "layer_windows": _windows(filled, lambda layer: layer % 2 == 0),
        "attention_softcap": filled.number("attn_logit_softcapping", 50.0, low=1e-3, high=1e6)
        if values.get("attn_logit_softcapping", 50.0) is not None
        else None,
        "logit_softcap": filled.number("final_logit_softcapping", 30.0, low=1e-3, high=1e6)
        if values.get("final_logit_softcapping", 30.0) is not None
        else None,
    }


def _gemma3(fields: Fields) -> dict[str, Any]:
    if fields.flag("use_bidirectional_attention", False):
        raise UnsupportedModelError(f"{fields.source}: bidirectional attention is not supported")
    filled = Fields({"sliding_window": 4096, **fields.values}, fields.source)
    pattern = fields.integer("sliding_window_pattern", 6)
    common = _gemma(
        filled, "gemma3", max_positions=131072, theta=1e6, rope_layer_type="full_attention"
    )
    local = {key: value for key, value in fields.values.items() if key != "rope_scaling"}
    local["rope_theta"] = fields.values.get("rope_local_base_freq")
    return {
        **common,
        "qk_norm": True,
        "layer_windows": _windows(filled, lambda layer: bool((layer + 1) % pattern)),
        "local_rope": parse_rope(
            Fields(local, fields.source),
            head_dim=common["head_dim"],
            max_positions=common["max_positions"],
            default_theta=10000.0,
            layer_type="sliding_attention",
        ),
        "attention_softcap": filled.optional_number("attn_logit_softcapping", low=1e-3, high=1e6),
        "logit_softcap": filled.optional_number("final_logit_softcapping", low=1e-3, high=1e6),
    }


def _phi3(fields: Fields) -> dict[str, Any]:
    return {
        **_common(fields, "phi3", max_positions=4096, eps=1e-5),
        "layer_windows": _windows(fields, lambda layer: True),
    }


FAMILIES: dict[str, Callable[[Fields], dict[str, Any]]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "phi3": _phi3,
}
"""model_type of config.json -> how the family differs from Llama."""
