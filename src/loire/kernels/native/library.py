"""The compiled library and its functions, by ctypes. source/api/ says what they do."""

import ctypes
from collections.abc import Callable, Sequence
from ctypes import c_char_p, c_double, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from loire.base.errors import ConfigError
from loire.kernels.native import calls

LIBRARY_PATH = Path(__file__).parent / "libloire_native.so"
INTERFACE_VERSION = 35
"""Of what the C functions do, to the bit; a library left over from another build has another."""

Function = Callable[..., Any]


class NativeLibrary:
    """The C functions, ready to be called. Raises OSError if the library cannot be loaded."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        pointer = c_void_p
        version = self._function("loire_interface_version", c_int, ())
        if version() != INTERFACE_VERSION:
            raise OSError(
                f"{path} has interface {version()}, but {INTERFACE_VERSION} is needed; "
                f"install Loire again to compile it"
            )
        layout: bytes = self._function("loire_layout", c_char_p, ())()
        check_layout(path, layout.decode())
        self.message = self._function("loire_message", c_char_p, ())
        self.instruction_sets = self._function("loire_instruction_sets", c_char_p, ())
        self.amx_state = self._function("loire_amx_state", c_int32, ())
        self.why_no_amx = self._function("loire_why_no_amx", c_char_p, ())
        self.open = self._function("loire_open", pointer, (c_char_p, c_int32))
        self.close = self._function("loire_close", None, (pointer,))
        self.pack = self._call("loire_pack", calls.PackCall, pointer)
        self.weight_bytes = self._function("loire_weight_bytes", c_int64, (pointer,))
        self.free_weight = self._function("loire_free_weight", None, (pointer,))
        self.reserve = self._function("loire_reserve", c_int, (pointer, c_int64))
        self.linear = self._call("loire_linear", calls.LinearCall)
        self.pack_adapter = self._call("loire_pack_adapter", calls.PackAdapterCall, pointer)
        self.adapter_bytes = self._function("loire_adapter_bytes", c_int64, (pointer,))
        self.free_adapter = self._function("loire_free_adapter", None, (pointer,))
        self.adapt = self._call("loire_adapt", calls.AdaptCall)
        self.experts = self._call("loire_experts", calls.ExpertsCall)
        self.heads = self._call("loire_heads", calls.HeadsCall)
        self.shared_bytes = self._function("loire_shared_bytes", c_int64, (c_int64,))
        self.join = self._call("loire_join", calls.JoinCall, pointer)
        self.lose = self._function("loire_lose", None, (pointer,))
        self.leave = self._function("loire_leave", None, (pointer,))
        self.sum_products = self._call("loire_sum_products", calls.SumProductsCall)
        self.sum_parts = self._call("loire_sum_parts", calls.SumPartsCall)
        self.gather = self._call("loire_gather", calls.GatherCall)
        self.norm = self._call("loire_norm", calls.NormCall)
        self.combine = self._call("loire_combine", calls.CombineCall)
        self.embed = self._call("loire_embed", calls.EmbedCall)
        self.dequantize = self._call("loire_dequantize", calls.DequantizeCall)
        self.choose = self._call("loire_choose", calls.ChooseCall)
        self.rotary = self._call("loire_rotary", calls.RotaryCall)
        self.latents = self._call("loire_latents", calls.LatentsCall)
        self.plan = self._call("loire_plan", calls.PlanCall, pointer)
        self.free_plan = self._function("loire_free_plan", None, (pointer,))
        self.attend = self._call("loire_attend", calls.AttendCall)
        self.delta_net = self._call("loire_delta_net", calls.DeltaNetCall)
        self.mamba2 = self._call("loire_mamba2", calls.Mamba2Call)
        self.short_convolution = self._call("loire_short_convolution", calls.ShortConvolutionCall)
        self.gate = self._call("loire_gate", calls.GateCall)
        self.record = self._function("loire_record", pointer, (pointer, pointer, c_int64))
        self.end_recording = self._function("loire_end_recording", c_int, (pointer,))
        self.replay = self._function("loire_replay", c_int, (pointer,) * 3)
        self.free_recording = self._function("loire_free_recording", None, (pointer,))
        self.read_limit = self._function("loire_read_limit", c_double, (pointer, pointer, c_int64))
        self.multiply_limit = self._function("loire_multiply_limit", c_double, (pointer, c_int32))

    def _call(self, name: str, struct: type[calls.CallStruct], result: Any = c_int) -> Function:
        """A function of a context and a struct of that kind."""
        return self._function(name, result, (c_void_p, ctypes.POINTER(struct)))

    def _function(self, name: str, result: Any, arguments: tuple[Any, ...]) -> Function:
        function = self._library[name]
        function.restype = result
        function.argtypes = arguments
        return function

    def last_message(self) -> str:
        """What the last function that failed on this thread found wrong."""
        text: bytes = self.message()
        return text.decode()


def check_layout(path: Path, theirs: str) -> None:
    """Raises OSError unless the library's structs, as it describes them, lie in memory as ours."""
    ours = calls.layout()
    if theirs == ours:
        return
    differing = set(theirs.split(";")) ^ set(ours.split(";"))
    names = sorted({struct.split("{")[0] for struct in differing})
    raise OSError(
        f"{path} has other structs than this version ({', '.join(names)}); "
        f"install Loire again to compile it"
    )


@cache
def load_library() -> NativeLibrary:
    """The library. Raises ConfigError, saying how to get it, if it is not there."""
    try:
        return NativeLibrary(LIBRARY_PATH)
    except OSError as error:
        raise ConfigError(
            f"the native kernels cannot be loaded ({error}); they are compiled when Loire is "
            f"installed from source on a machine with a C++17 compiler (g++ or clang++)"
        ) from error


def array_of(kind: Any, values: Sequence[int | None]) -> Any:
    """A C array."""
    return (kind * len(values))(*values)
