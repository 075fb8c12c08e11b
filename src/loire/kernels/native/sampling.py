"""Choosing tokens by the native library."""

import torch
from torch import Tensor

from loire.kernels.interface import Chosen, SamplingRows
from loire.kernels.native.calls import ChooseCall
from loire.kernels.native.context import NativeContext, address


class NativeSampling:
    """See kernels.interface.SamplingKernels."""

    def __init__(self, context: NativeContext) -> None:
        self._context = context
        self._choose = context.library.choose

    def choose(self, logits: Tensor, rows: SamplingRows) -> Chosen:
        """A token from each row of logits [L, V]. Raises EngineError for edits outside of them."""
        if logits.dtype is not torch.float32:
            raise ValueError(f"logits are float32, not {logits.dtype}")
        logits = logits.contiguous()
        count, size = logits.shape
        chosen = Chosen(torch.empty(count, dtype=torch.int64), torch.empty(count, dtype=torch.bool))
        edits, penalties = rows.edits, rows.penalties
        call = ChooseCall(
            rows=logits.data_ptr(),
            temperature=rows.temperature.data_ptr(),
            min_p=rows.min_p.data_ptr(),
            top_k=rows.top_k.data_ptr(),
            top_p=rows.top_p.data_ptr(),
            draw=rows.draw.data_ptr(),
            edit_starts=None if edits is None else edits.starts.data_ptr(),
            edit_tokens=None if edits is None else edits.tokens.data_ptr(),
            edit_addends=None if edits is None else edits.addends.data_ptr(),
            places=None if penalties is None else penalties.places.data_ptr(),
            counts=None if penalties is None else penalties.counts.data_ptr(),
            seen=None if penalties is None else penalties.seen.data_ptr(),
            repetition=None if penalties is None else penalties.repetition.data_ptr(),
            frequency=None if penalties is None else penalties.frequency.data_ptr(),
            presence=None if penalties is None else penalties.presence.data_ptr(),
            allowed=address(rows.allowed),
            tokens=chosen.tokens.data_ptr(),
            finite=chosen.finite.data_ptr(),
            count=count,
            size=size,
            num_lines=0 if penalties is None else len(penalties.counts),
            words=0 if rows.allowed is None else rows.allowed.shape[1],
        )
        self._context.run(self._choose, call)
        return chosen
