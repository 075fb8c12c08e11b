"""The attention plan of the native library."""

import weakref

from loire.base.errors import EngineError
from loire.kernels.interface import FlatBatch
from loire.kernels.native.calls import PlanCall
from loire.kernels.native.library import NativeLibrary


class NativePlan:
    """The rows of a step, checked against their block tables."""

    def __init__(
        self, library: NativeLibrary, context: int, batch: FlatBatch, block_size: int
    ) -> None:
        self._batch = batch  # its tensors are read later
        self.block_size = block_size
        self.num_tokens = sum(batch.host_query_lens)
        rows, table_size = batch.block_tables.shape
        call = PlanCall(
            query_starts=batch.query_starts.data_ptr(),
            context_lens=batch.context_lens.data_ptr(),
            block_tables=batch.block_tables.data_ptr(),
            rows=rows,
            table_size=table_size,
            block_size=block_size,
        )
        handle = library.plan(context, call)
        if handle is None:
            raise EngineError(f"native kernels: {library.last_message()}")
        self.handle: int = handle
        weakref.finalize(self, library.free_plan, handle)
