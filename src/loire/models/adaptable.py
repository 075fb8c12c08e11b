"""By which products a weight is computed, for adapters of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from loire.kernels.interface import Linear, LowRank

Shares = Iterator[tuple[Linear, LowRank]]
"""Products, and what is added to each of them."""


class Adaptable(Protocol):
    """A weight [outputs, inputs] as adapters see it: in the order of the model's files."""

    @property
    def inputs(self) -> int:
        """Of the weight."""
        ...

    def shares(self, whole: LowRank) -> Shares:
        """What an addition to some rows of the weight adds to each product."""
        ...


@dataclass(frozen=True, slots=True)
class ProductRows:
    """Outputs of a product that are rows of a weight."""

    product: Linear
    first: int = 0
    """The first output that is one."""
    rows: Tensor | None = None
    """int64: which row each of them is, in their order; None: all, in the weight's order."""

    def share(self, whole: LowRank) -> LowRank | None:
        """Of an addition to rows of the weight; None for nothing."""
        if self.rows is None:
            return LowRank(whole.down, whole.up, self.first + whole.first)
        of_rows = self.rows - whole.first
        [places] = ((of_rows >= 0) & (of_rows < len(whole.up))).nonzero(as_tuple=True)
        if not len(places):
            return None
        first, end = int(places[0]), int(places[-1]) + 1
        up = whole.up.new_zeros(end - first, whole.up.shape[1])
        up[places - first] = whole.up[of_rows[places]]
        return LowRank(whole.down, up, self.first + first)


@dataclass(frozen=True, slots=True)
class AdaptableRows:
    """A weight whose rows are outputs of products."""

    parts: tuple[ProductRows, ...]

    @property
    def inputs(self) -> int:
        """Of the weight."""
        return self.parts[0].product.in_features

    def shares(self, whole: LowRank) -> Shares:
        """Of each product that has some of the rows."""
        for part in self.parts:
            share = part.share(whole)
            if share is not None:
                yield part.product, share


@dataclass(frozen=True, slots=True)
class AdaptableLatents:
    """The weight that makes keys and values of a latent: of each head, the key's rows, then the
    value's. Its keys are computed the other way round, from a query to the latent's size."""

    keys: Sequence[Linear]
    values: Sequence[Linear]

    @property
    def inputs(self) -> int:
        """Of the weight."""
        return self.values[0].in_features

    def shares(self, whole: LowRank) -> Shares:
        """Of each head's products, for an addition to all rows."""
        key_dim, value_dim = self.keys[0].in_features, self.values[0].out_features
        heads = whole.up.view(len(self.keys), key_dim + value_dim, -1)
        back = whole.down.T.contiguous()
        for product, up in zip(self.keys, heads[:, :key_dim], strict=True):
            yield product, LowRank(up.T.contiguous(), back)
        for product, up in zip(self.values, heads[:, key_dim:], strict=True):
            yield product, LowRank(whole.down, up)


def whole(product: Linear) -> AdaptableRows:
    """A weight that is one product's, row by row."""
    return AdaptableRows((ProductRows(product),))


def in_order(product: Linear, order: Tensor | None) -> AdaptableRows:
    """The same, with the rows in another order (int64 [outputs])."""
    return AdaptableRows((ProductRows(product, 0, None if order is None else order.cpu()),))


def side_by_side(num_rows: int) -> Tensor:
    """Which row of each is the next, where rows of two halves stand in pairs (int64)."""
    return torch.arange(num_rows).view(-1, 2).T.flatten()
