"""Weights from a checkpoint into a decoder, layer by layer, so that memory peaks at little more
than the final size. Every tensor must be used and every weight be there."""

import re
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from loire.base.config import WeightQuantization
from loire.base.errors import CheckpointError
from loire.checkpoint.checkpoint import Checkpoint
from loire.checkpoint.description import LayerDescription, LayerWeights, ModelWeights, PartNorms
from loire.checkpoint.sharding import cuts_of, head_borders, rank_of
from loire.checkpoint.share import WHOLE, Share
from loire.checkpoint.weights import Matrix, each, matrices
from loire.kernels.interface import Backend, Linear, Ranks, Table
from loire.kernels.ranks import GatheredLinear
from loire.models.adaptable import whole
from loire.models.decoder import Decoder, Layer, Norms
from loire.models.feed_forward import build_feed_forward
from loire.models.held_weights import held_in_words
from loire.models.layer_loader import LayerLoader, RotaryTables, WeightReader, rows_of
from loire.models.mixers import build_mixer
from loire.models.per_layer import PerLayerEmbedding, build_per_layer_input

LAYERS_AHEAD = 2
_EXPERT = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(\d+)\.")


def load_decoder(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype,
    device: torch.device,
    backend: Backend,
    max_model_len: int,
    quantization: WeightQuantization = "auto",
    progress: Callable[[float], None] | None = None,
    share: Share = WHOLE,
    ranks: Ranks | None = None,
) -> Decoder:
    """Read, convert and prepare all weights, or a rank's share of them.

    ranks: those that have the rest.

    Raises CheckpointError naming tensors that are missing, left over or of the wrong shape,
    ConfigError if the model cannot be shared like this.
    """
    description, weights = rank_of(checkpoint, share)
    check_names(checkpoint, checkpoint.description.weights())
    reader = WeightReader(
        checkpoint.tensors,
        dtype=dtype,
        device=device,
        backend=backend,
        quantization=quantization,
        ranks=ranks,
    )
    rotary = RotaryTables(max_model_len, device)

    def loader(given: object) -> LayerLoader:
        return LayerLoader(reader, reader.read(tuple(each(given))), description.norm_eps, rotary)

    def table(weight: Matrix) -> Table:
        load = loader(weight)
        made = load.linear(weight) if reader.stays_as_stored(weight) else load.table(weight)
        load.done()
        return made

    embedding = table(weights.embedding)
    per_layer = None
    if weights.per_layer is not None and description.per_layer is not None:
        load = loader((weights.per_layer.projection, weights.per_layer.norm))
        per_layer = PerLayerEmbedding(
            size=description.per_layer.size,
            table=table(weights.per_layer.table),
            projection=load.linear(weights.per_layer.projection),
            norm=load.vector(weights.per_layer.norm),
            norm_eps=description.norm_eps * description.hidden_size,
        )
    layers = []
    # Reading and dequantizing run ahead on other threads while a layer is packed: by two layers,
    # as so many more in memory are few and all of them would be a second copy.
    with ThreadPoolExecutor(LAYERS_AHEAD) as pool:
        waiting = iter(weights.layers)
        ahead = deque(pool.submit(loader, next(waiting, ())) for _ in range(LAYERS_AHEAD))
        for index, layer in enumerate(description.layers):
            load = ahead.popleft().result()
            ahead.append(pool.submit(loader, next(waiting, ())))
            layers.append(build_layer(index, layer, weights.layers[index], load))
            load.done()
            if progress is not None:
                progress((index + 1) / (description.num_layers + 1))
    final_norm = loader(weights.final_norm).vector(weights.final_norm)
    rows = share.range_of(description.vocab_size)
    head: Linear
    if weights.head is not None:
        load = loader(weights.head)
        head = load.linear(weights.head)
        load.done()
    elif isinstance(embedding, Tensor):
        rounding = reader.rounding(weights.embedding, "head")
        own = embedding if share.size == 1 else embedding[rows[0] : rows[1]]
        head = reader.linear([own], None, rounding=rounding)
    elif share.size > 1:
        [table_rows] = loader(weights.embedding).matrix(weights.embedding)
        head = reader.linear([rows_of(table_rows, *rows)], None)
    else:
        head = embedding
    if share.size > 1:
        borders = head_borders(description.vocab_size, share.size)
        head = GatheredLinear(head, borders, reader.ranks)
    if progress is not None:
        progress(1.0)
    adaptable = {**reader.adaptable, "lm_head": whole(head)}
    decoder = Decoder(
        description,
        backend,
        embedding,
        layers,
        final_norm,
        head,
        per_layer,
        adaptable,
        checkpoint.description,
        cuts_of(checkpoint.description, weights, share),
    )
    decoder.held = held_in_words(reader, checkpoint.tensors, matrices(weights))
    return decoder


def build_layer(
    index: int, description: LayerDescription, weights: LayerWeights, load: LayerLoader
) -> Layer:
    """A layer from its weights; takes them out of the loader."""

    def norms(part: PartNorms | None) -> Norms | None:
        if part is None:
            return None
        after = None if part.after is None else load.vector(part.after)
        return Norms(None if part.before is None else load.vector(part.before), after)

    mixer, feed_forward = description.mixer, description.feed_forward
    per_layer_input = description.per_layer_input
    each_norms = [
        norms(weights.mixer_norms),
        norms(weights.feed_forward_norms),
        norms(weights.per_layer_norms),
    ]
    if weights.output_scale is not None:
        scale = float(load.vector(weights.output_scale))
        last = max(i for i, found in enumerate(each_norms) if found is not None)
        found = each_norms[last]
        each_norms[last] = None if found is None else replace(found, scale=scale)
    mixer_norms, feed_forward_norms, per_layer_norms = each_norms
    return Layer(
        mixer=None if mixer is None else build_mixer(mixer, weights.mixer, load),
        mixer_norms=mixer_norms,
        feed_forward=(
            None
            if feed_forward is None
            else build_feed_forward(feed_forward, weights.feed_forward, load)
        ),
        feed_forward_norms=feed_forward_norms,
        cache_of=description.cache_of(index),
        per_layer_input=(
            None
            if per_layer_input is None or weights.per_layer_input is None
            else build_per_layer_input(per_layer_input, weights.per_layer_input, load)
        ),
        per_layer_norms=per_layer_norms,
    )


def check_names(checkpoint: Checkpoint, weights: ModelWeights) -> None:
    """Raises CheckpointError unless the checkpoint has the tensors of these weights, no others."""
    present = set(checkpoint.tensors)
    expected = {name for weight in each(weights) for name in weight.stored_names(present)}
    if weights.head is None:
        present.discard("lm_head.weight")  # some files repeat the embedding there
    missing, unused = sorted(expected - present), sorted(present - expected)
    if missing or unused:
        _check_experts(checkpoint, expected)
        raise CheckpointError(
            f"{checkpoint.path} does not hold the weights of a "
            f"{checkpoint.description.architecture} model: {_named('missing', missing)}; "
            f"{_named('unused', unused)}"
        )


def _check_experts(checkpoint: Checkpoint, expected: Collection[str]) -> None:
    """Raises CheckpointError where a layer has another number of experts than it should."""
    wanted, found = _num_experts(expected), _num_experts(checkpoint.tensors)
    for layer in sorted(wanted.keys() | found.keys(), key=int):
        if wanted[layer] != found[layer]:
            raise CheckpointError(
                f"{checkpoint.path}: layer {layer} should have {wanted[layer]} experts by the "
                f"model's configuration, but its weights are those of {found[layer]}"
            )


def _num_experts(names: Iterable[str]) -> Counter[str]:
    """How many experts each layer has that has some."""
    experts = {match.groups() for name in names if (match := _EXPERT.match(name))}
    return Counter(layer for layer, _ in experts)


def _named(what: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"{len(names)} {what}" + (f" ({shown})" if names else "")
