"""Block tables as execution keeps them: a plan tells only what changes in them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LEAST_WIDTH = 16


class BlockTables:
    """The block tables of one cache group, int32 [sequences, M]; rows have the batch's order.

    Which blocks a sequence has is told once; a step of the same sequences as the one before it
    takes the array as it is, without a copy.
    """

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}
        """Which row of the array is whose; those of nobody come after the others' or between."""
        self._blocks = np.zeros((1, LEAST_WIDTH), dtype=np.int32)

    def replace(self, seq_id: int, first: int, block_ids: Sequence[int]) -> None:
        """From index first on, the sequence's blocks are these."""
        row = self._rows.get(seq_id)
        if row is None:
            row = self._rows[seq_id] = self._unused_row()
        end = first + len(block_ids)
        if end > self._blocks.shape[1]:
            self._grow(self._blocks.shape[0], end)
        self._blocks[row, first:end] = block_ids

    def drop(self, seq_id: int) -> None:
        """The sequence's blocks are its own no more."""
        self._rows.pop(seq_id, None)

    def of(self, seq_ids: Sequence[int]) -> NDArray[np.int32]:
        """Tables of these sequences, int32 [R, M], valid until the next call of any method.

        Entries past a sequence's own blocks hold anything that a table held.
        """
        rows = [self._rows[seq_id] for seq_id in seq_ids]
        if rows != list(range(len(rows))):
            self._arrange(rows)
        return self._blocks[: len(rows)]

    def _arrange(self, first: list[int]) -> None:
        """Put these rows first, in this order."""
        chosen = set(first)
        order = first + [row for row in self._rows.values() if row not in chosen]
        place = {row: index for index, row in enumerate(order)}
        self._rows = {seq_id: place[row] for seq_id, row in self._rows.items()}
        arranged = np.zeros_like(self._blocks)
        np.take(self._blocks, order, axis=0, out=arranged[: len(order)])
        self._blocks = arranged

    def _unused_row(self) -> int:
        """A row of nobody's, made if there is none."""
        num_rows = self._blocks.shape[0]
        if len(self._rows) < num_rows:
            return next(iter(set(range(num_rows)) - set(self._rows.values())))
        self._grow(num_rows + 1, 0)
        return num_rows

    def _grow(self, num_rows: int, width: int) -> None:
        """Make room for more rows or columns, twice of what there is."""
        rows, columns = self._blocks.shape
        if num_rows > rows:
            rows = max(num_rows, 2 * rows)
        if width > columns:
            columns = max(width, 2 * columns)
        grown = np.zeros((rows, columns), dtype=np.int32)
        grown[: self._blocks.shape[0], : self._blocks.shape[1]] = self._blocks
        self._blocks = grown
