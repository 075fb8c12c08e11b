"""Which device and dtype to compute with, and how much memory is really available."""

import psutil
import torch

from loire.base.config import DType, EngineOptions
from loire.base.errors import ConfigError
from loire.base.machine import group_memory

TORCH_DTYPES: dict[str, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
KV_CACHE_DTYPES: dict[str, torch.dtype] = {**TORCH_DTYPES, "int8": torch.int8}


def select_device(name: str) -> torch.device:
    """The named device, or for "auto" the best one present.

    Raises ConfigError if there is no such device.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {error}") from error
    return device


def select_dtype(options: EngineOptions) -> DType:
    """The dtype asked for; "auto" is bfloat16, also for float32 checkpoints: half the reads."""
    return "bfloat16" if options.dtype == "auto" else options.dtype


def available_memory(device: torch.device) -> int:
    """Bytes that could be taken now: on the device, or on the host within its container's limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    available = int(psutil.virtual_memory().available)
    left = [max(group.limit - group.used, 0) for group in group_memory()]
    return min([available, *left])
