"""The compiled library and its functions, by ctypes. source/library.cpp says what they do."""

import ctypes
from collections.abc import Callable, Sequence
from ctypes import c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from loire.base.errors import ConfigError

LIBRARY_PATH = Path(__file__).parent / "libloire_native.so"
INTERFACE_VERSION = 13
"""Of the C functions; a library left over from an older build has another one."""

Function = Callable[..., Any]


class NativeLibrary:
    """The C functions, ready to be called. Raises OSError if the library cannot be loaded."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        pointer, size = c_void_p, c_int64
        version = self._function("loire_interface_version", c_int, ())
        if version() != INTERFACE_VERSION:
            raise OSError(
                f"{path} has interface {version()}, but {INTERFACE_VERSION} is needed; "
                f"install Loire again to compile it"
            )
        self.message = self._function("loire_message", c_char_p, ())
        self.instruction_sets = self._function("loire_instruction_sets", c_char_p, ())
        self.amx_state = self._function("loire_amx_state", c_int32, ())
        self.why_no_amx = self._function("loire_why_no_amx", c_char_p, ())
        self.open = self._function("loire_open", pointer, (c_char_p, c_int32))
        self.close = self._function("loire_close", None, (pointer,))
        self.pack = self._function(
            "loire_pack", pointer, (pointer, *(c_int32,) * 4, *(pointer,) * 4, size)
        )
        self.free_weight = self._function("loire_free_weight", None, (pointer,))
        self.linear = self._function("loire_linear", c_int, (*(pointer,) * 4, c_int32, size))
        self.norm = self._function(
            "loire_norm", c_int, (pointer, c_int32, *(pointer,) * 4, size, size, c_float)
        )
        self.embed = self._function(
            "loire_embed",
            c_int,
            (pointer, c_int32, *(pointer,) * 5, size, size, size, c_float, c_float),
        )
        self.dequantize = self._function(
            "loire_dequantize", c_int, (pointer, c_int32, c_int32, pointer, pointer, size)
        )
        self.largest = self._function("loire_largest", c_int, (*(pointer,) * 4, size, size))
        self.draw = self._function("loire_draw", c_int, (*(pointer,) * 8, size, size))
        self.rotary = self._function(
            "loire_rotary",
            c_int,
            (pointer, c_int32, *(pointer,) * 12, *(size,) * 10, c_float),
        )
        self.plan = self._function("loire_plan", pointer, (*(pointer,) * 4, size, size, size))
        self.free_plan = self._function("loire_free_plan", None, (pointer,))
        self.attend = self._function(
            "loire_attend",
            c_int,
            (pointer, pointer, c_int32, *(pointer,) * 6, *(size,) * 7, c_float, c_float),
        )

        self.record = self._function("loire_record", pointer, (pointer,))
        self.end_recording = self._function("loire_end_recording", c_int, (pointer,))
        self.replay = self._function("loire_replay", c_int, (pointer,) * 3)
        self.free_recording = self._function("loire_free_recording", None, (pointer,))
        self.read_limit = self._function("loire_read_limit", c_double, (pointer, pointer, size))
        self.multiply_limit = self._function("loire_multiply_limit", c_double, (pointer, c_int32))

    def _function(self, name: str, result: Any, arguments: tuple[Any, ...]) -> Function:
        function = self._library[name]
        function.restype = result
        function.argtypes = arguments
        return function

    def last_message(self) -> str:
        """What the last function that failed on this thread found wrong."""
        text: bytes = self.message()
        return text.decode()


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


def array_of(kind: Any, values: Sequence[int]) -> Any:
    """A C array."""
    return (kind * len(values))(*values)
