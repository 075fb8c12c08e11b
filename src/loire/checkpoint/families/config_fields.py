"""Reading config.json: what most families share, with a family's own defaults.

Defaults for missing keys are those of transformers' configuration classes.
"""

from collections.abc import Callable
from typing import Any

from loire.base.errors import CheckpointError, UnsupportedModelError
from loire.checkpoint.description import ModelDescription
from loire.checkpoint.families.common import MAX_EXPERTS, MAX_LAYERS, Common
from loire.checkpoint.feed_forward import (
    Activation,
    ExpertsDescription,
    GatedMLPDescription,
    Routing,
    Scores,
)
from loire.checkpoint.fields import MAX_POSITIONS, Fields
from loire.checkpoint.rope_config import parse_rope, stretched_window

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
}


def common(
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
) -> Common:
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
    if name not in ACTIVATIONS:
        raise UnsupportedModelError(f"{fields.source}: activation {name!r} is not supported")
    rope = parse_rope(
        fields,
        head_dim=dim,
        max_positions=positions,
        default_theta=theta,
        layer_type=rope_layer_type,
    )
    # Where layers have embeddings of their own, the file's window is the one after stretching.
    longest = positions if rope_layer_type else stretched_window(rope, positions)
    model = {
        "architecture": architecture,
        "vocab_size": fields.integer("vocab_size"),
        "hidden_size": hidden,
        "max_positions": longest,
        "usual_positions": positions if longest > positions else None,
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
        "activation": ACTIVATIONS[name],
        "rope": rope,
    }
    return Common(model, layer)


def token_ids(fields: Fields, key: str) -> tuple[int, ...]:
    """An id or a list of ids, as eos_token_id may be; empty where the key is missing or null."""
    value = fields.values.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(item) is int and 0 <= item < 2**31 for item in ids):
        raise fields.wrong(key, value, "a token id or a list of them")
    return tuple(ids)


def windows(fields: Fields, is_local: Callable[[int], bool]) -> tuple[int | None, ...]:
    """Windows per layer: by layer_types where the config lists them, else by the family's rule."""
    window = fields.optional_integer("sliding_window")
    count = num_layers(fields)
    types = fields.values.get("layer_types")
    if types is None:
        return tuple(window if is_local(layer) else None for layer in range(count))
    known = ("full_attention", "sliding_attention")
    if (
        not isinstance(types, list)
        or len(types) != count
        or any(kind not in known for kind in types)
    ):
        raise fields.wrong("layer_types", types, f"{count} of {', '.join(known)}")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def uniform_windows(fields: Fields) -> tuple[int | None, ...]:
    """The same window in all layers, for families whose layers are all alike."""
    count = num_layers(fields)
    types = fields.values.get("layer_types")
    if isinstance(types, list) and len({str(kind) for kind in types}) > 1:
        raise UnsupportedModelError(
            f"{fields.source}: layers of different kinds (layer_types) are not supported in "
            f"this family"
        )
    return (fields.optional_integer("sliding_window"),) * count


def with_defaults(fields: Fields, **defaults: Any) -> Fields:
    """Defaults for keys that are missing; a null stays."""
    return Fields({**defaults, **fields.values}, fields.source)


def num_layers(fields: Fields) -> int:
    """How many the model has."""
    return fields.integer("num_hidden_layers", high=MAX_LAYERS)


def experts(
    fields: Fields,
    description: ModelDescription,
    *,
    top_k: int,
    renormalise: bool = True,
    scores: Scores = "softmax",
    **settings: Any,
) -> ExpertsDescription:
    """Experts in the place of the MLP that every layer of a description has.

    renormalise, scores: of their routing; settings: of ExpertsDescription.
    """
    # (The first is what transformers writes for all families, the second what some makers do.)
    is_local = "num_local_experts" in fields.values
    count_key = "num_local_experts" if is_local else "num_experts"
    mlp = description.layers[0].feed_forward
    assert isinstance(mlp, GatedMLPDescription)
    count = fields.integer(count_key, high=MAX_EXPERTS)
    chosen = fields.integer("num_experts_per_tok", top_k)
    if chosen > count:
        raise fields.wrong("num_experts_per_tok", chosen, f"at most {count_key}, {count}")
    routing = Routing(num_experts=count, top_k=chosen, scores=scores, renormalise=renormalise)
    settings = {
        "intermediate_size": mlp.intermediate_size,
        "activation": mlp.activation,
        **settings,
    }
    return ExpertsDescription(routing=routing, **settings)


def sparse_layers(
    fields: Fields, description: ModelDescription, experts: ExpertsDescription
) -> list[ExpertsDescription | None]:
    """The experts of layers that have them (decoder_sparse_step, mlp_only_layers), else None."""
    step = fields.integer("decoder_sparse_step", 1)
    dense_layers = fields.values.get("mlp_only_layers") or []
    if not isinstance(dense_layers, list) or not all(type(i) is int for i in dense_layers):
        raise fields.wrong("mlp_only_layers", dense_layers, "a list of layers")
    return [
        None if index in dense_layers or (index + 1) % step else experts
        for index in range(description.num_layers)
    ]
