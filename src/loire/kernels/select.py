"""Which backends there are, and which one to use."""

import logging
from dataclasses import dataclass

import torch

from loire.base.errors import ConfigError
from loire.kernels.interface import Backend

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """A backend and whether it can be used on this machine."""

    name: str
    usable: bool
    why: str
    """What it makes use of, or why it cannot be used."""


def available_backends() -> list[BackendInfo]:
    """All backends, the most general first."""
    from loire.kernels.cpu import can_pack
    from loire.kernels.native.backend import NativeBackend

    native_usable, native_why = NativeBackend.available()
    return [
        BackendInfo("reference", True, "plain torch, any device"),
        BackendInfo(
            "cpu",
            True,
            "torch on CPU, bfloat16 weights packed by oneDNN"
            if can_pack()
            else "torch on CPU, without bfloat16 packing (oneDNN lacks support here)",
        ),
        BackendInfo("native", native_usable, native_why),
    ]


def select_backend(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    num_threads: int | None = None,
    *,
    sum_chunks: int = 0,
) -> Backend:
    """The named backend, or for "auto" the best one for the device and dtype.

    num_threads: of the native kernels; None takes all cores that this process may use.
    sum_chunks: in how many chunks the model takes some sums (LinearKernels.summed()), 0 for none:
    its numbers say so.

    Raises ConfigError if there is no such backend or it cannot be used there.
    """
    if name == "auto":
        name = _best(device, dtype)
    backend = _backend(name, device, num_threads)
    if sum_chunks:
        backend.numbers += f", sums of {sum_chunks} chunks"
    return backend


def _backend(name: str, device: torch.device, num_threads: int | None) -> Backend:
    if name in ("cpu", "native") and device.type != "cpu":
        raise ConfigError(f"kernels {name!r} cannot run on device {str(device)!r}")
    if name == "reference":
        from loire.kernels.reference import ReferenceBackend

        return ReferenceBackend()
    if name == "cpu":
        from loire.kernels.cpu import CpuBackend

        return CpuBackend()
    if name == "native":
        from loire.kernels.native.backend import NativeBackend

        return NativeBackend(num_threads)
    known = ", ".join(info.name for info in available_backends())
    raise ConfigError(f"there are no kernels {name!r}; known are auto, {known}")


def _best(device: torch.device, dtype: torch.dtype) -> str:
    if device.type != "cpu":
        _log.warning(
            "there are no kernels for %s: the reference computes, each row of a step by itself, "
            "which is slow",
            device,
        )
        return "reference"
    from loire.kernels.cpu import can_pack
    from loire.kernels.native.backend import BATCH_INVARIANT_DTYPES, NativeBackend

    if dtype not in BATCH_INVARIANT_DTYPES or not NativeBackend.available()[0]:
        return "cpu"
    # With AMX oneDNN computes a prefill several times as fast as native kernels without it.
    if dtype is torch.bfloat16 and can_pack() and NativeBackend.lacks_amx():
        return "cpu"
    return "native"
