"""Names, shapes and roles of a model's weights. Loading, sizing and checking all go by these.

Each part of a layer says what it has (see loire.checkpoint.description); here is what they say it
with. Names are those of loire.checkpoint.checkpoint.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields, is_dataclass
from itertools import accumulate
from typing import Literal

Role = Literal["product", "embedding", "head", "router"]
"""A router chooses experts: it is never rounded."""


Range = tuple[int, int]
"""From the first to behind the last."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Some rows and inputs of a stored tensor [outputs, inputs]."""

    rows: tuple[Range, ...]
    """One below the other."""
    inputs: Range
    shape: tuple[int, int]
    """Of the whole."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What one of several ranks holds of a matrix."""

    rows: tuple[Range, ...]
    """Of each part."""
    inputs: Range
    whole_rows: tuple[int, ...]
    whole_inputs: int


@dataclass(frozen=True, slots=True)
class Vector:
    """Numbers that are kept in float32, such as the weights of a norm."""

    name: str
    size: int
    offset: float = 0.0
    """Added to each when it is loaded."""
    factor: float = 1.0
    """What they are multiplied by then."""
    first: int = 0
    whole_size: int | None = None
    """If not None: of so many in the file it is those from first on."""

    @property
    def num_elements(self) -> int:
        """How many numbers."""
        return self.size

    def stored_names(self, present: Collection[str]) -> tuple[str, ...]:
        """Of the tensors that a file with these names has it in."""
        return (self.name,)


@dataclass(frozen=True, slots=True)
class Filters:
    """Weights of a convolution along the sequence, one filter for each channel, kept in float32.

    A file has them as [channels, width] or, as torch's Conv1d does, [channels, 1, width].
    """

    name: str
    channels: int
    width: int

    @property
    def num_elements(self) -> int:
        """How many numbers."""
        return self.channels * self.width

    def stored_names(self, present: Collection[str]) -> tuple[str, ...]:
        """Of the tensors that a file with these names has it in."""
        return (self.name,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A weight [outputs, inputs], perhaps with a bias [outputs].

    A file has it whole, as name.weight, or in parts, one below the other.
    """

    name: str
    rows: tuple[int, ...]
    """Outputs of each part."""
    inputs: int
    parts: tuple[str, ...] = ()
    """Names of the parts, as many as rows; none where files never have it in parts."""
    bias: bool = False
    role: Role = "product"
    gated: bool = False
    """Whether its product is one of two halves, of which the first gates the second."""
    interleaved: tuple[int, ...] = ()
    """Where the file has one group of rows after another (such as heads), each with so many rows of
    this, so many of that: loaded, this of all groups comes first. Not for what may be in parts."""
    cut: Cut | None = None
    """If not None, rows and inputs are those of this rank, and the file has more."""
    chunks: tuple[int, ...] = ()
    """Inputs of each chunk, where products with chunks are added up in a tree; none: there are no
    chunks."""

    @property
    def outputs(self) -> int:
        """Of all parts together."""
        return sum(self.rows)

    @property
    def num_elements(self) -> int:
        """Without the bias."""
        return self.outputs * self.inputs

    def pieces(self, present: Collection[str]) -> tuple[tuple[str, int], ...]:
        """Names, without their endings, and outputs of what a file with these names has it in."""
        if f"{self.name}.weight" in present or not self.parts:
            return ((self.name, self.outputs),)
        return tuple(zip(self.parts, self.rows, strict=True))

    def slices(self, present: Collection[str]) -> tuple[Slice | None, ...]:
        """What is taken of each of the pieces; None for all of it."""
        cut = self.cut
        if cut is None:
            return (None,) * len(self.pieces(present))
        if len(self.pieces(present)) == len(cut.rows):
            sizes = zip(cut.rows, cut.whole_rows, strict=True)
            return tuple(Slice((rows,), cut.inputs, (n, cut.whole_inputs)) for rows, n in sizes)
        starts = accumulate(cut.whole_rows, initial=0)
        rows = tuple((at + a, at + b) for at, (a, b) in zip(starts, cut.rows, strict=False))
        return (Slice(rows, cut.inputs, (sum(cut.whole_rows), cut.whole_inputs)),)

    def rows_in(self, first: int, end: int) -> tuple[tuple[int, Range], ...]:
        """Of outputs first up to end of the whole matrix, those that are here: where they lie, and
        which of those outputs (from 0) they are."""
        if self.cut is None:
            return ((first, (0, end - first)),)
        found, at, whole_at = [], 0, 0
        for (start, stop), whole in zip(self.cut.rows, self.cut.whole_rows, strict=True):
            low, high = max(first, whole_at + start), min(end, whole_at + stop)
            if low < high:
                found.append((at + low - whole_at - start, (low - first, high - first)))
            at, whole_at = at + stop - start, whole_at + whole
        return tuple(found)

    def stored_weights(self, present: Collection[str]) -> tuple[str, ...]:
        """Names of the tensors that hold the weight alone."""
        return tuple(f"{name}.weight" for name, _ in self.pieces(present))

    def stored_names(self, present: Collection[str]) -> tuple[str, ...]:
        """Names of all its tensors."""
        biases = [f"{name}.bias" for name, _ in self.pieces(present)] if self.bias else []
        return (*self.stored_weights(present), *biases)


Weight = Vector | Filters | Matrix


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a model a part stands, for its weights' names and shapes."""

    prefix: str
    """Of the names, such as "model.layers.3."."""
    hidden_size: int
    norm_offset: float

    def norm(self, name: str, size: int | None = None) -> Vector:
        """The weight of a norm; of the hidden size where none is given."""
        size = self.hidden_size if size is None else size
        return Vector(f"{self.prefix}{name}.weight", size, self.norm_offset)


def each(weights: object) -> Iterator[Weight]:
    """Every weight in a dataclass of weights, of others like it, of tuples and of None."""
    if isinstance(weights, (Vector, Filters, Matrix)):
        yield weights
    elif isinstance(weights, tuple):
        for item in weights:
            yield from each(item)
    elif is_dataclass(weights):
        for field in fields(weights):
            yield from each(getattr(weights, field.name))


def matrices(weights: object) -> tuple[Matrix, ...]:
    """Of those weights, the matrices."""
    return tuple(weight for weight in each(weights) if isinstance(weight, Matrix))
