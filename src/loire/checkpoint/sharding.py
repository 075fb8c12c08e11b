"""What one of several ranks holds of a model: tensor parallelism (Shoeybi et al. 2019,
"Megatron-LM").

A rank has some heads and some of an MLP's intermediate numbers: rows of the products that make
them, columns of the products that take them. The latter are added up over the ranks, in a tree of
as many chunks of their inputs, whatever the number of ranks, so that the sum always has the same
bits. Of the output head a rank has rows; embeddings and norms it has whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from loire.base.errors import ConfigError
from loire.checkpoint.checkpoint import Checkpoint
from loire.checkpoint.description import (
    LayerDescription,
    LayerWeights,
    ModelDescription,
    ModelWeights,
)
from loire.checkpoint.feed_forward import (
    BranchDescription,
    BranchWeights,
    ExpertsDescription,
    ExpertsWeights,
    FeedForwardDescription,
    GatedMLPDescription,
    GatedMLPWeights,
    ParallelDescription,
)
from loire.checkpoint.latent_attention import LatentAttentionDescription, LatentAttentionWeights
from loire.checkpoint.mixers import AttentionDescription, AttentionWeights, MixerDescription
from loire.checkpoint.share import (
    UNIT,
    NotDivisibleError,
    Share,
    borders_of,
    borders_of_heads,
    listed,
    settle_chunks,
)
from loire.checkpoint.weights import Cut, Matrix, Range, matrices

MOST_SIZE = 8
"""Up to which numbers of processes are named where one does not work."""

BlockInputs = Callable[[Matrix], int]
"""How many inputs lie in a block of a matrix, as its file has it; 1 for plain numbers."""


def rank_of(checkpoint: Checkpoint, share: Share) -> tuple[ModelDescription, ModelWeights]:
    """What a rank computes of a model, and the weights it has for that. Raises as share_of()."""
    tensors = checkpoint.tensors

    def block_inputs(matrix: Matrix) -> int:
        names = matrix.stored_weights(tensors)
        return max((tensors[x].format.block_elements for x in names if x in tensors), default=1)

    return share_of(checkpoint.description, share, block_inputs)


def share_of(
    description: ModelDescription, share: Share, block_inputs: BlockInputs
) -> tuple[ModelDescription, ModelWeights]:
    """What a rank computes, and the weights it has for that.

    Raises ConfigError, naming the sizes that work, if the model cannot be divided like this.
    """
    weights = description.weights()
    if not share.chunks:
        return description, weights
    try:
        return _share_of(description, weights, share, block_inputs)
    except NotDivisibleError as error:
        if share.size == 1:
            raise ConfigError(f"sums cannot be taken in {share.chunks} chunks: {error}") from error
        works = [1, *working_sizes(description, block_inputs)]
        raise ConfigError(
            f"tensor_parallel_size {share.size} does not go with this model: {error}; "
            f"{listed(works)} {'works' if len(works) == 1 else 'work'}"
        ) from error


def working_sizes(description: ModelDescription, block_inputs: BlockInputs) -> list[int]:
    """The numbers of ranks above 1 that a model can be divided among."""
    weights, found = description.weights(), []
    for size in range(2, MOST_SIZE + 1):
        share = Share(size - 1, size, settle_chunks(size, None))
        try:
            _share_of(description, weights, share, block_inputs)
        except NotDivisibleError:
            continue
        found.append(size)
    return found


def _share_of(
    description: ModelDescription,
    weights: ModelWeights,
    share: Share,
    block_inputs: BlockInputs,
) -> tuple[ModelDescription, ModelWeights]:
    pairs = [
        _layer(layer, own, share, block_inputs)
        for layer, own in zip(description.layers, weights.layers, strict=True)
    ]
    head = None if weights.head is None else rank_head(description, share)
    return (
        replace(description, layers=tuple(layer for layer, _ in pairs)),
        replace(weights, layers=tuple(own for _, own in pairs), head=head),
    )


def rank_head(description: ModelDescription, share: Share) -> Matrix:
    """A rank's rows of the output head, or of an embedding that is one."""
    weights = description.weights()
    head = weights.embedding if weights.head is None else weights.head
    return _rows(head, [share.range_of(description.vocab_size)])


def cuts_of(
    description: ModelDescription, weights: ModelWeights, share: Share
) -> dict[str, Matrix]:
    """Of what share_of() gave for a model: the weights that are cut, by their names as adapters
    have them."""
    if share.size == 1:
        return {}
    found = {matrix.name: matrix for matrix in matrices(weights) if matrix.cut is not None}
    found["lm_head"] = rank_head(description, share)
    for layer, own in zip(description.layers, weights.layers, strict=True):
        mixer, mine = layer.mixer, own.mixer
        if not isinstance(mixer, LatentAttentionDescription) or not isinstance(
            mine, LatentAttentionWeights
        ):
            continue
        # One weight to adapters, also where the file has keys and values apart.
        name = f"{mine.output.name.removesuffix('.o_proj')}.kv_b_proj"
        rows = mixer.num_heads * (mixer.key_dim + mixer.value_dim)
        both = Matrix(name=name, rows=(rows,), inputs=mixer.rank)
        found[name] = _rows(both, [share.range_of(rows)])
    return found


def head_borders(vocab_size: int, size: int) -> tuple[int, ...]:
    """Where each rank's rows of the head begin, and the last one's end."""
    return tuple(vocab_size * rank // size for rank in range(size + 1))


def _layer(
    layer: LayerDescription, weights: LayerWeights, share: Share, block_inputs: BlockInputs
) -> tuple[LayerDescription, LayerWeights]:
    mixer, feed_forward = layer.mixer, layer.feed_forward
    if mixer is not None:
        mixer, own = _mixer(mixer, weights.mixer, share, block_inputs)
        weights = replace(weights, mixer=own)
    if feed_forward is not None:
        feed_forward, own = _feed_forward(feed_forward, weights.feed_forward, share, block_inputs)
        weights = replace(weights, feed_forward=own)
    return replace(layer, mixer=mixer, feed_forward=feed_forward), weights


def _mixer(
    mixer: MixerDescription, weights: object, share: Share, block_inputs: BlockInputs
) -> tuple[MixerDescription, object]:
    if isinstance(mixer, AttentionDescription) and isinstance(weights, AttentionWeights):
        return _attention(mixer, weights, share, block_inputs)
    if isinstance(mixer, LatentAttentionDescription) and isinstance(
        weights, LatentAttentionWeights
    ):
        return _latent_attention(mixer, weights, share, block_inputs)
    raise NotDivisibleError(f"{_name(mixer)} is not divided among processes")


def _feed_forward(
    part: FeedForwardDescription, weights: object, share: Share, block_inputs: BlockInputs
) -> tuple[FeedForwardDescription, object]:
    if isinstance(part, GatedMLPDescription) and isinstance(weights, GatedMLPWeights):
        return _mlp(part, weights, share, block_inputs)
    if isinstance(part, ExpertsDescription) and isinstance(weights, ExpertsWeights):
        return _experts(part, weights, share, block_inputs)
    if isinstance(part, ParallelDescription) and isinstance(weights, tuple):
        pairs = [
            _branch(branch, own, share, block_inputs)
            for branch, own in zip(part.branches, weights, strict=True)
        ]
        return ParallelDescription(tuple(x for x, _ in pairs)), tuple(own for _, own in pairs)
    raise NotDivisibleError(f"{_name(part)} is not divided among processes")


def _branch(
    branch: BranchDescription, weights: BranchWeights, share: Share, block_inputs: BlockInputs
) -> tuple[BranchDescription, BranchWeights]:
    part, own = _feed_forward(branch.part, weights.part, share, block_inputs)
    return replace(branch, part=part), replace(weights, part=own)


def _name(part: object) -> str:
    return type(part).__name__.removesuffix("Description")


def _attention(
    mixer: AttentionDescription, weights: AttentionWeights, share: Share, block_inputs: BlockInputs
) -> tuple[AttentionDescription, AttentionWeights]:
    size = share.size
    for what, count in (("query", mixer.num_heads), ("KV", mixer.num_kv_heads)):
        if count % size:
            raise NotDivisibleError(f"its {count} {what} heads are no multiple of {size}")
    if size > 1 and mixer.norms_span_heads:
        raise NotDivisibleError("its norms of queries and keys span all heads")
    block = block_inputs(weights.output)
    borders = borders_of_heads(mixer.query_size, mixer.head_dim, share, block)
    heads, query_gate = share.range_of(mixer.num_heads), weights.query_gate
    if query_gate is not None:
        query_gate = _rows(query_gate, [share.range_of(rows) for rows in query_gate.rows])
    sinks = weights.sinks
    if sinks is not None and size > 1:
        sinks = replace(sinks, size=heads[1] - heads[0], first=heads[0], whole_size=sinks.size)
    own = replace(
        weights,
        qkv=_rows(weights.qkv, [share.range_of(rows) for rows in weights.qkv.rows]),
        query_gate=query_gate,
        output=_inputs(weights.output, share.chunks_of(borders)),
        sinks=sinks,
    )
    return (
        replace(mixer, num_heads=mixer.num_heads // size, num_kv_heads=mixer.num_kv_heads // size),
        own,
    )


def _mlp(
    mlp: GatedMLPDescription, weights: GatedMLPWeights, share: Share, block_inputs: BlockInputs
) -> tuple[GatedMLPDescription, GatedMLPWeights]:
    whole = borders_of(mlp.intermediate_size, share.chunks, block_inputs(weights.down), UNIT)
    borders = share.chunks_of(whole)
    rows = borders[0], borders[-1]
    own = GatedMLPWeights(
        gate_up=_rows(weights.gate_up, [rows] * len(weights.gate_up.rows)),
        down=_inputs(weights.down, borders),
    )
    return replace(mlp, intermediate_size=rows[1] - rows[0]), own


def _latent_attention(
    mixer: LatentAttentionDescription,
    weights: LatentAttentionWeights,
    share: Share,
    block_inputs: BlockInputs,
) -> tuple[LatentAttentionDescription, LatentAttentionWeights]:
    """Heads are divided; each rank keeps the latents, which all heads read."""
    size = share.size
    if mixer.num_heads % size:
        raise NotDivisibleError(f"its {mixer.num_heads} query heads are no multiple of {size}")

    def heads(matrix: Matrix | None) -> Matrix | None:
        return None if matrix is None else _rows(matrix, [share.range_of(matrix.outputs)])

    inputs, block = mixer.num_heads * mixer.value_dim, block_inputs(weights.output)
    borders = borders_of_heads(inputs, mixer.value_dim, share, block)
    own = replace(
        weights,
        query=_rows(weights.query, [share.range_of(weights.query.outputs)]),
        keys_values=heads(weights.keys_values),
        keys=heads(weights.keys),
        values=heads(weights.values),
        output=_inputs(weights.output, share.chunks_of(borders)),
    )
    return replace(mixer, num_heads=mixer.num_heads // size), own


def _experts(
    part: ExpertsDescription, weights: ExpertsWeights, share: Share, block_inputs: BlockInputs
) -> tuple[ExpertsDescription, ExpertsWeights]:
    """Experts are divided as they are: a rank has some of them whole. The shared one is divided as
    an MLP. All ranks choose."""
    count = part.routing.num_experts
    if count < share.size:
        raise NotDivisibleError(f"it has {count} experts, fewer than {share.size}")
    whole = [count * chunk // share.chunks for chunk in range(share.chunks + 1)]
    borders, shared, shared_size = share.chunks_of(whole), weights.shared, part.shared_size
    if shared is not None:
        mlp = GatedMLPDescription(intermediate_size=shared_size, activation=part.activation)
        mlp, shared = _mlp(mlp, shared, share, block_inputs)
        shared_size = mlp.intermediate_size
    own = replace(
        weights,
        experts=tuple(
            expert if borders[0] <= index < borders[-1] else None
            for index, expert in enumerate(weights.experts)
        ),
        shared=shared,
    )
    return replace(part, shared_size=shared_size, chunk_borders=tuple(borders)), own


def _rows(matrix: Matrix, rows: Sequence[Range]) -> Matrix:
    """A matrix with some rows of each of its parts."""
    if all(end - first == whole for (first, end), whole in zip(rows, matrix.rows, strict=True)):
        return matrix
    cut = Cut(tuple(rows), (0, matrix.inputs), matrix.rows, matrix.inputs)
    return replace(matrix, rows=tuple(end - first for first, end in rows), cut=cut)


def _inputs(matrix: Matrix, borders: Sequence[int]) -> Matrix:
    """A matrix with the inputs of some chunks."""
    rows = tuple((0, outputs) for outputs in matrix.rows)
    first, end = borders[0], borders[-1]
    cut = None
    if end - first < matrix.inputs:
        cut = Cut(rows, (first, end), matrix.rows, matrix.inputs)
    chunks = tuple(b - a for a, b in pairwise(borders))
    return replace(matrix, inputs=end - first, cut=cut, chunks=chunks)
