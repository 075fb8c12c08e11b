"""CPU backend in C++: a row's result is the same bits whatever it is computed with."""

import torch
from torch import Tensor

from loire.base.errors import ConfigError
from loire.base.machine import usable_cores
from loire.kernels.interface import Backend, Meeting, Ranks
from loire.kernels.native.attention import NativeAttention
from loire.kernels.native.context import NativeContext
from loire.kernels.native.dtypes import TYPES
from loire.kernels.native.library import INTERFACE_VERSION, load_library
from loire.kernels.native.linear import NativeLinearKernels
from loire.kernels.native.pointwise import NativePointwise
from loire.kernels.native.ranks import NativeAlone, NativeRanks
from loire.kernels.native.recording import NativeCapture
from loire.kernels.native.recurrent import NativeRecurrent
from loire.kernels.native.sampling import NativeSampling
from loire.kernels.reference_transfers import ReferenceTransfers

BATCH_INVARIANT_DTYPES = frozenset(TYPES)
"""All that the kernels compute in."""

_AMX_UNPROVEN = 2
"""As in source/runtime/amx.h: processor and system provide AMX, but the kernels failed with it."""


class NativeBackend(Backend):
    """See kernels.interface.Backend. For bfloat16 and float32 tensors on the CPU.

    Sums are taken in a fixed order per row: not the other rows, nor the chunks of a prefill, nor
    the layout of blocks, nor the number of threads changes a bit. float32 denormals count as zero.

    Any number of threads may use one backend; they take turns.
    """

    def __init__(self, num_threads: int | None = None, instruction_set: str | None = None) -> None:
        """num_threads: by default the cores this process may use.

        instruction_set: one of instruction_sets(), by default the best.

        Raises ConfigError if the library or the instruction set is not there.
        """
        library = load_library()
        self.num_threads = usable_cores() if num_threads is None else num_threads
        self.instruction_set = instruction_set or instruction_sets()[0]
        if not 1 <= self.num_threads <= 1024:
            raise ConfigError(f"num_threads must be between 1 and 1024, but is {self.num_threads}")
        context = NativeContext(library, self.instruction_set, self.num_threads)
        self._context = context
        super().__init__(
            name="native",
            numbers=f"native {INTERFACE_VERSION} {self.instruction_set}",
            linear=NativeLinearKernels(context),
            attention=NativeAttention(context),
            recurrent=NativeRecurrent(context),
            pointwise=NativePointwise(context),
            sampling=NativeSampling(context),
            transfers=ReferenceTransfers(),
            capture=NativeCapture(context),
            join=self._join,
            batch_invariant_dtypes=BATCH_INVARIANT_DTYPES,
            torch_threads=1,  # it has threads of its own
            reserve=self._reserve,
        )

    def _reserve(self, num_tokens: int, num_bytes: int) -> None:
        self._context.results.reserve(num_bytes)
        if self._context.library.reserve(self._context.handle, num_tokens):
            raise self._context.error()

    def _join(self, meeting: Meeting) -> Ranks:
        if meeting.size == 1:
            return NativeAlone(self._context)
        return NativeRanks(self._context, meeting)

    @staticmethod
    def available() -> tuple[bool, str]:
        """Whether the backend can be used here, and what it makes use of or why not."""
        try:
            names = instruction_sets()
        except ConfigError as error:
            return False, str(error)
        why_no_amx: bytes = load_library().why_no_amx()
        note = f"; AMX is not used: {why_no_amx.decode()}" if why_no_amx else ""
        return True, f"C++ on CPU with {names[0]}, {usable_cores()} threads{note}"

    @staticmethod
    def lacks_amx() -> bool:
        """Whether other libraries can use AMX here, but these kernels cannot."""
        state: int = load_library().amx_state()
        return state == _AMX_UNPROVEN

    def read_limit(self, memory: Tensor) -> float:
        """Bytes per second at which all threads read memory (whole 256 KiB), each byte once."""
        speed: float = self._context.library.read_limit(
            self._context.handle, memory.data_ptr(), memory.nbytes
        )
        return speed

    def multiply_limit(self, dtype: torch.dtype) -> float:
        """Floating-point operations per second of all threads, multiplying in registers."""
        speed: float = self._context.library.multiply_limit(self._context.handle, TYPES[dtype])
        return speed


def instruction_sets() -> tuple[str, ...]:
    """Instruction sets that can be used here, best first. Raises ConfigError if none can."""
    names: bytes = load_library().instruction_sets()
    return tuple(names.decode().split(","))
