"""How large a model is: its weights as held, what a step reads of them, its KV per token.

From a checkpoint this is a sum over the weights that its description lists, as loire.models loads
them: vectors are float32, everything else is in the model's dtype, in the blocks of its file or in
the format asked for, an output head that is tied to the embedding is the same memory. The CPU
kernels pack bfloat16 weights for matrix multiplication, which the lookup of an embedding cannot
read: there a tied embedding is held twice. By hand it is parameters times bits.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from loire.base.cache_geometry import CacheGeometry, LayerNeed, cache_geometry
from loire.base.config import EngineOptions
from loire.base.errors import ConfigError
from loire.checkpoint.checkpoint import Checkpoint
from loire.checkpoint.description import LayerDescription, LayerWeights, ModelDescription
from loire.checkpoint.feed_forward import ExpertsDescription, ExpertsWeights, ParallelDescription
from loire.checkpoint.formats import Q4_0, Q8_0, WeightFormat
from loire.checkpoint.sharding import rank_of
from loire.checkpoint.share import Share, settle_chunks
from loire.checkpoint.weights import Matrix, Role, Weight, each, matrices
from loire.planning.held_bytes import DTYPES, EXPANDED, QUANTIZATIONS, ROUNDED, held_bytes

ATTENTION_COST = 1.5
"""Times as long as an operation of a product with weights takes one of attention."""
DTYPE_ALIASES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32"}
KV_FORMATS: dict[str, WeightFormat] = {
    **DTYPES,
    "fp8": WeightFormat("FP8", 1, 1),  # one scale per tensor: nothing per token
    "q8_0": Q8_0,
    "q4_0": Q4_0,
}
KV_DTYPES = (*KV_FORMATS, "int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """A model's sizes, all devices together. Parameters are counts, the rest is bytes."""

    name: str
    num_parameters: int
    weight_bytes: int
    """Weights as held in memory."""
    repeated_bytes: int = 0
    """Of these, what is held a second time: a tied embedding beside its packed output head."""
    step_parameters: int
    """Parameters that a token is multiplied by: all matrices but an embedding lookup and experts
    that it does not choose."""
    step_weight_bytes: int
    """Bytes of them: what a decode step of one sequence reads."""
    routed_weight_bytes: int = 0
    """Bytes of all experts that tokens choose from."""
    routed_share: float = 1.0
    """Share of them that a token chooses."""
    head_parameters: int
    """Those of step_parameters in the output head; prefill uses them for the last token only."""
    kv_bytes_per_token: int
    description: ModelDescription | None = None
    """Shapes, where they are known: they add attention to the operations."""

    def step_bytes(self, tokens: float) -> float:
        """Bytes of weights that a step of so many tokens reads: of experts, those that they may be
        expected to choose if each is as likely."""
        by_one = self.routed_share * self.routed_weight_bytes
        by_all = self.routed_weight_bytes * (1.0 - math.pow(1.0 - self.routed_share, tokens))
        return self.step_weight_bytes - by_one + by_all

    def kv_read_bytes(self, context: float) -> float:
        """KV that one decode step of one sequence reads at that context length. States are read
        and written, whatever the context."""
        if self.description is None:
            return self.kv_bytes_per_token * context
        model = self.description
        needs = [need for owner in model.cache_owners if (need := model.caches[owner]) is not None]
        per_element = self.kv_bytes_per_token / model.kv_elements_per_token
        read = sum(need.elements_per_token * need.tokens_read(context) for need in needs)
        return per_element * read + 2 * model.state_bytes

    def kv_held_bytes(self, num_tokens: int) -> int:
        """KV memory that a sequence of that length holds at most, in pages: layers with a window
        hold the window, and what is being computed in a step of the default size; those with a
        state hold that."""
        geometry = self.geometry
        if geometry is None:
            return self.kv_bytes_per_token * num_tokens
        ahead = EngineOptions().max_num_batched_tokens
        return geometry.pages_for(num_tokens, ahead) * geometry.page_bytes

    @property
    def geometry(self) -> CacheGeometry | None:
        """The cache groups, where layers differ in what they keep; else None."""
        if self.description is None or self.kv_bytes_per_token == 0:
            return None
        per_element = self.kv_bytes_per_token / self.description.kv_elements_per_token
        needs = [
            None
            if need is None
            else LayerNeed(
                need.kind,
                round(need.elements_per_token * per_element),
                need.window,
                need.state_parts,
            )
            for need in self.description.caches
        ]
        if all(need is None or need.kind == "full" for need in needs):
            return None
        return cache_geometry(needs, EngineOptions().block_size)

    def decode_flops(self, context: float) -> float:
        """Operations for one token at that context: two per parameter, and attention."""
        total = 2.0 * self.step_parameters
        if self.description is not None:
            layers = self.description.layers
            total += sum(x.mixer.operations(context) for x in layers if x.mixer is not None)
        return total

    @property
    def wanted_parameters(self) -> int:
        """Those of step_parameters that only tokens whose logits are wanted go through.

        The output head, what the last layer that keeps anything does after its keys and values, and
        the layers behind it.
        """
        model = self.description
        if model is None:
            return self.head_parameters
        last = model.layers[model.last_keeper].mixer
        assert last is not None, "it keeps something"
        first, weights = model.last_keeper, model.weights().layers
        left = sum(map(_parameters_of_token, model.layers[first:], weights[first:]))
        return self.head_parameters + left - model.hidden_size * last.remembered_outputs

    def weight_flops(self, computed: int, wanted: int) -> float:
        """Operations of the weights, two each, on tokens of which some have their logits wanted."""
        always = self.step_parameters - self.wanted_parameters
        return 2.0 * (always * computed + self.wanted_parameters * wanted)

    def prefill_flops(self, prompt: int) -> float:
        """Operations for a whole prompt, of which the last token's logits are wanted."""
        total = self.weight_flops(prompt, 1)
        model = self.description
        if model is not None:
            for index, layer in enumerate(model.layers):
                if layer.mixer is not None and index < model.last_keeper:
                    total += layer.mixer.prompt_operations(prompt)
                elif layer.mixer is not None:
                    total += layer.mixer.operations(prompt)
        return total


@dataclass(frozen=True, slots=True)
class RankSize:
    """Of one of the processes that share a model (tensor parallelism), in bytes."""

    weight_bytes: int
    """Of the one that has most."""
    kv_bytes_per_token: int


def size_of_rank(
    checkpoint: Checkpoint,
    size: int,
    *,
    dtype: str,
    quantization: str | None,
    kv_dtype: str,
    bits: float | None = None,
) -> RankSize:
    """What each of so many processes holds. Raises ConfigError if Loire does not divide the model
    like this."""
    present, most = checkpoint.tensors, 0
    whole = checkpoint.description.weights()
    for rank in range(size):
        share = Share(rank, size, settle_chunks(size, None))
        description, weights = rank_of(checkpoint, share)
        total = 0.0
        for weight in each(weights):
            names = [name for name in weight.stored_names(present) if name in present]
            stored = [present[name] for name in names]
            held = held_bytes(weight, stored, dtype, quantization, bits)
            cut = weight.cut if isinstance(weight, Matrix) else None
            whole_size = 1 if cut is None else sum(cut.whole_rows) * cut.whole_inputs
            total += held if cut is None else held * weight.num_elements / whole_size
        if whole.head is None:  # a rank's rows of the embedding are packed beside it
            first, end = share.range_of(description.vocab_size)
            name = f"{whole.embedding.name}.weight"
            stored = [present[name]]
            held = held_bytes(whole.embedding, stored, dtype, quantization, bits, role="head")
            total += held * (end - first) / description.vocab_size
        most = max(most, round(total))
    return RankSize(most, _kv_bytes_per_token(description, kv_dtype))


def size_by_hand(
    num_parameters: int,
    kv_bytes_per_token: int,
    *,
    active_parameters: int | None = None,
    dtype: str,
    quantization: str | None,
) -> ModelSize:
    """Sizes of a model of which only these numbers are known. Raises ConfigError.

    active_parameters: of a mixture of experts, those that a token is multiplied by; how many of
    them are no experts is not known, so that all count as such.
    """
    active = num_parameters if active_parameters is None else active_parameters
    for name, value in (
        ("params", num_parameters),
        ("active", active),
        ("kv-per-token", kv_bytes_per_token),
    ):
        if value < 1:
            raise ConfigError(f"--{name} must be at least 1, but is {value}")
    if active > num_parameters:
        raise ConfigError(
            f"--active is {active}, more than all parameters (--params {num_parameters})"
        )
    share = active / num_parameters
    formats = QUANTIZATIONS | ROUNDED
    fmt = DTYPES[dtype] if quantization in (None, EXPANDED) else formats[quantization]
    weight_bytes = math.ceil(num_parameters * fmt.block_bytes / fmt.block_elements)
    return ModelSize(
        name=f"{num_parameters / 1e9:g}B parameters"
        + ("" if share == 1.0 else f", {active / 1e9:g}B active"),
        num_parameters=num_parameters,
        weight_bytes=weight_bytes,
        step_parameters=active,
        step_weight_bytes=round(share * weight_bytes),
        routed_weight_bytes=0 if share == 1.0 else weight_bytes,
        routed_share=share,
        head_parameters=0,
        kv_bytes_per_token=kv_bytes_per_token,
    )


def size_of_checkpoint(
    checkpoint: Checkpoint,
    name: str,
    *,
    dtype: str,
    quantization: str | None,
    kv_dtype: str,
    on_cpu: bool,
    bits: float | None = None,
) -> ModelSize:
    """Sizes of a checkpoint loaded as dtype, its matrices in a block format if one is named,
    rounded as the engine rounds to "int8" or "int4", or in so many bits per weight on average.

    Raises ConfigError if a format's blocks do not fit the model's rows.
    """
    description = checkpoint.description
    weights = description.weights()
    present = checkpoint.tensors

    def held(weight: Weight, names: Iterable[str], role: Role | None = None) -> int:
        found = [present[name] for name in names if name in present]
        return held_bytes(weight, found, dtype, quantization, bits, role)

    names = {weight: weight.stored_names(present) for weight in each(weights)}
    head = weights.embedding if weights.head is None else weights.head
    routed = [expert for layer in weights.layers for expert in _routed(layer)]
    routed_bytes = sum(held(m, m.stored_weights(present)) for m in routed)
    shares = [share for layer in description.layers if (share := _share_of(layer)) < 1.0]
    share = sum(shares) / len(shares) if shares else 1.0
    shared = () if weights.per_layer is None else (weights.per_layer.projection,)
    fixed = {*matrices(weights.layers), *shared} - {*routed}
    head_bytes = held(head, head.stored_weights(present), "head")
    fixed_bytes = head_bytes + sum(held(m, m.stored_weights(present)) for m in fixed)
    numbers = bits is None and quantization in (None, EXPANDED)
    packs = on_cpu and dtype == "bfloat16" and numbers and head_bytes == 2 * head.num_elements
    is_rounded = quantization in ROUNDED and head_bytes != held(head, names[head])
    repeated = head_bytes if weights.head is None and (packs or is_rounded) else 0
    return ModelSize(
        name=name,
        num_parameters=sum(
            math.prod(present[name].shape)
            for of_weight in names.values()
            for name in of_weight
            if name in present
        ),
        weight_bytes=sum(held(weight, names[weight]) for weight in names) + repeated,
        repeated_bytes=repeated,
        step_parameters=head.num_elements
        + sum(matrix.num_elements for matrix in shared)
        + sum(map(_parameters_of_token, description.layers, weights.layers)),
        step_weight_bytes=fixed_bytes + round(share * routed_bytes),
        routed_weight_bytes=routed_bytes,
        routed_share=share,
        head_parameters=head.num_elements,
        kv_bytes_per_token=_kv_bytes_per_token(description, kv_dtype),
        description=description,
    )


def doubling_context(description: ModelDescription) -> int | None:
    """Tokens of context behind which a token of a prompt takes twice as long as at its beginning:
    attention to them takes as long as the products with weights. None: it never does."""
    window, layers = description.default_window, description.layers
    products = 2.0 * sum(map(_parameters_of_token, layers, description.weights().layers))
    mixers = [layer.mixer for layer in layers if layer.mixer is not None]
    attention = sum(mixer.operations(window) - mixer.operations(0) for mixer in mixers)
    if attention <= 0:
        return None
    return max(1, round(window * products / (ATTENTION_COST * attention)))


def _share_of(layer: LayerDescription) -> float:
    """Of its experts, what a token chooses; 1 without experts."""
    found = layer.feed_forward
    parts = [b.part for b in found.branches] if isinstance(found, ParallelDescription) else [found]
    experts = [part for part in parts if isinstance(part, ExpertsDescription)]
    return experts[0].share_read(1) if experts else 1.0


def _routed(weights: LayerWeights) -> tuple[Matrix, ...]:
    """Matrices of the experts that tokens choose from."""
    found = weights.feed_forward
    parts = [branch.part for branch in found] if isinstance(found, tuple) else [found]
    return matrices(tuple(part.experts for part in parts if isinstance(part, ExpertsWeights)))


def _parameters_of_token(layer: LayerDescription, weights: LayerWeights) -> int:
    """Parameters of a layer's matrices that a token is multiplied by."""
    routed = sum(matrix.num_elements for matrix in _routed(weights))
    everything = sum(matrix.num_elements for matrix in matrices(weights))
    return everything - routed + round(_share_of(layer) * routed)


def _kv_bytes_per_token(description: ModelDescription, kv_dtype: str) -> int:
    if kv_dtype == "int8":
        return description.kv_bytes_per_token(kv_dtype)
    fmt = KV_FORMATS[kv_dtype]
    sizes = [need.vector_size for need in description.caches if need is not None]
    for size in sizes:
        if size % fmt.block_elements:
            raise ConfigError(
                f"KV in {kv_dtype} packs {fmt.block_elements} elements of a head together, but a "
                f"head has {size}; take one of {', '.join((*DTYPES, 'fp8', 'int8'))}"
            )
    return fmt.num_bytes(description.kv_elements_per_token)
