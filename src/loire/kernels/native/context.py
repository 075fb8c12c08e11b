"""An open native library: what all of a backend's parts share."""

import weakref
from collections.abc import Callable

import torch
from torch import Tensor

from loire.base.errors import ConfigError, EngineError
from loire.kernels.interface import FlatBatch
from loire.kernels.native.calls import CallStruct
from loire.kernels.native.library import NativeLibrary
from loire.kernels.native.results import Results


class NativeContext:
    """The library's threads and scratch memory; closed when nobody holds it any more."""

    def __init__(self, library: NativeLibrary, instruction_set: str, num_threads: int) -> None:
        """Raises ConfigError if there is no such instruction set."""
        handle = library.open(instruction_set.encode(), num_threads)
        if handle is None:
            raise ConfigError(f"native kernels cannot start: {library.last_message()}")
        self.library = library
        self.handle: int = handle
        self.results = Results()
        weakref.finalize(self, library.close, handle)

    def run(self, function: Callable[[int, CallStruct], int], call: CallStruct) -> None:
        """One of the library's functions. Raises EngineError with its message if it fails."""
        if function(self.handle, call):
            raise self.error()

    def error(self) -> EngineError:
        """What the last function that failed on this thread found wrong."""
        return EngineError(f"native kernels: {self.library.last_message()}")


def address(x: Tensor | None) -> int | None:
    """Where a tensor lies; None of None."""
    return None if x is None else x.data_ptr()


def adapter_numbers(batch: FlatBatch | None, tokens: int) -> int | None:
    """Where the numbers of the tokens' adapters lie; None where no token has one. Raises ValueError
    unless they are as many as the tokens."""
    if batch is None or batch.adapters is None:
        return None
    numbers = batch.adapters.numbers
    if numbers.shape != (tokens,) or numbers.dtype is not torch.int32:
        raise ValueError(
            f"{tokens} tokens have int32 adapters each, not {tuple(numbers.shape)} {numbers.dtype}"
        )
    return numbers.data_ptr()
