"""Which backends there are, and which one to use."""

from dataclasses import dataclass

import torch

from loire.base.errors import ConfigError
from loire.kernels.interface import Backend


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

    return [
        BackendInfo("reference", True, "plain torch, any device"),
        BackendInfo(
            "cpu",
            True,
            "torch on CPU, bfloat16 weights packed by oneDNN"
            if can_pack()
            else "torch on CPU, without bfloat16 packing (oneDNN lacks support here)",
        ),
    ]


def select_backend(name: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """The named backend, or for "auto" the best one for the device and dtype.

    Raises ConfigError if there is no such backend or it cannot be used there.
    """
    if name == "auto":
        name = "cpu" if device.type == "cpu" else "reference"
    if name == "reference":
        from loire.kernels.reference import ReferenceBackend

        return ReferenceBackend()
    if name == "cpu":
        if device.type != "cpu":
            raise ConfigError(f"kernels 'cpu' cannot run on device {str(device)!r}")
        from loire.kernels.cpu import CpuBackend

        return CpuBackend()
    known = ", ".join(info.name for info in available_backends())
    raise ConfigError(f"there are no kernels {name!r}; known are auto, {known}")
