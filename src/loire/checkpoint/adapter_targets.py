"""The weights of a model that adapters may be for."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from loire.checkpoint.description import LayerDescription, LayerWeights, ModelDescription
from loire.checkpoint.families.registry import FAMILIES
from loire.checkpoint.feed_forward import ClampedSwiGLU, ExpertsDescription
from loire.checkpoint.latent_attention import LatentAttentionDescription
from loire.checkpoint.mixers import AttentionDescription, MixerDescription
from loire.checkpoint.recurrent_mixers import GatedDeltaNetDescription
from loire.checkpoint.weights import Matrix, matrices

_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(\w+)")


@dataclass(frozen=True, slots=True)
class AdapterTarget:
    """Some rows of a weight, under the name that a module or parameter of them has."""

    product: str
    """Name of the weight (loire.checkpoint.weights.Matrix); where there are experts, with {} in
    the place of an expert's number."""
    first: int
    """The first row that is the module's, as Hugging Face's models have them."""
    outputs: int
    inputs: int
    heads: int = 0
    """Where it is the product of latents with keys and values: how many heads it has."""
    experts: int = 0
    """Where it is one parameter of all experts: how many."""
    pairs: bool = False
    """Of that: whether rows of gate and up stand side by side, the experts' inputs first."""
    is_moved: bool = False
    """Whether what computes it may have the rows in another order than Hugging Face's models."""


class AdapterTargets:
    """All of a model, by the names of weights and parameters in Hugging Face's models: those that
    the tensors of loire.checkpoint.checkpoint have, or those of any family's files.

    There are none for embeddings, nor for the recurrent mixers of Qwen3.5 in GGUF files, whose
    heads come in another order.
    """

    def __init__(self, description: ModelDescription) -> None:
        self.by_name: Mapping[str, AdapterTarget] = _targets(description)
        """By common names, without .weight."""

    def of(self, name: str) -> AdapterTarget | None:
        """By the full name of a weight or parameter."""
        for renamed in _RENAMINGS:
            common = renamed(name)
            found = None if common is None else self.by_name.get(common.removesuffix(".weight"))
            if found is not None:
                return found
        return None


# (Whose files a model came from does not matter: a GGUF file has the adapters of the original.)
_RENAMINGS: tuple[Callable[[str], str | None], ...] = tuple(
    dict.fromkeys(family.common_name for family in FAMILIES)
)
_MADE_WHOLE = (".in_proj_qkvz", ".in_proj_ba")
"""Ends of names of weights that are whole modules only where files never have them in parts."""


def _targets(description: ModelDescription) -> dict[str, AdapterTarget]:
    weights = description.weights()
    found: dict[str, AdapterTarget] = {}
    for layer, own in zip(description.layers, weights.layers, strict=True):
        for weight in _adaptable(layer, own):
            found |= _of_matrix(weight, is_moved=_is_moved(layer.mixer, weight))
        found |= _of_latents(layer, own)
        found |= _of_experts(layer, own)
    if weights.per_layer is not None:
        found |= _of_matrix(weights.per_layer.projection)
    head = weights.embedding if weights.head is None else weights.head
    found["lm_head"] = AdapterTarget("lm_head", 0, head.outputs, head.inputs)
    return found


def _of_matrix(weight: Matrix, *, is_moved: bool = False) -> dict[str, AdapterTarget]:
    whole = AdapterTarget(weight.name, 0, weight.outputs, weight.inputs, is_moved=is_moved)
    found, first = {}, 0
    if not (weight.parts and weight.name.endswith(_MADE_WHOLE)):
        found[weight.name] = whole
    for part, rows in zip(weight.parts, weight.rows, strict=False):
        found[part] = replace(whole, first=first, outputs=rows)
        first += rows
    return found


def _is_moved(mixer: MixerDescription | None, weight: Matrix) -> bool:
    """Of a weight of a layer with that mixer."""
    if weight.interleaved:
        return True
    if isinstance(mixer, AttentionDescription):
        is_moved = mixer.output_gate or mixer.pairs_together
    else:
        is_moved = isinstance(mixer, LatentAttentionDescription)
    return is_moved and ".self_attn." in weight.name and not weight.name.endswith(".o_proj")


def _adaptable(layer: LayerDescription, weights: LayerWeights) -> Iterator[Matrix]:
    """Weights that are as in Hugging Face's models, but perhaps for the order of their rows."""
    mixer = layer.mixer
    if isinstance(mixer, LatentAttentionDescription):
        apart = (".kv_b_proj", ".k_b_proj", ".v_b_proj")
        yield from (m for m in matrices(weights.mixer) if not m.name.endswith(apart))
    elif not (isinstance(mixer, GatedDeltaNetDescription) and mixer.heads_in_turn):
        yield from matrices(weights.mixer)
    yield from matrices((weights.feed_forward, weights.per_layer_input))


def _of_latents(layer: LayerDescription, weights: LayerWeights) -> dict[str, AdapterTarget]:
    mixer = layer.mixer
    if not isinstance(mixer, LatentAttentionDescription):
        return {}
    [output] = [m for m in matrices(weights.mixer) if m.name.endswith(".o_proj")]
    name = f"{output.name.removesuffix('.o_proj')}.kv_b_proj"
    rows = mixer.num_heads * (mixer.key_dim + mixer.value_dim)
    return {name: AdapterTarget(name, 0, rows, mixer.rank, heads=mixer.num_heads)}


def _of_experts(layer: LayerDescription, weights: LayerWeights) -> dict[str, AdapterTarget]:
    """Parameters that hold a matrix of all experts of a layer."""
    matches = [(m, _EXPERT.fullmatch(m.name)) for m in matrices(weights.feed_forward)]
    counts = Counter((match[1], match[3]) for _, match in matches if match is not None)
    experts = layer.feed_forward
    is_clamped = isinstance(experts, ExpertsDescription) and isinstance(
        experts.activation, ClampedSwiGLU
    )
    found = {}
    for matrix, match in matches:
        if match is not None and match[2] == "0":
            found[f"{match[1]}.{match[3]}"] = AdapterTarget(
                f"{match[1]}.{{}}.{match[3]}",
                0,
                matrix.outputs,
                matrix.inputs,
                experts=counts[match[1], match[3]],
                pairs=is_clamped,
            )
    return found
