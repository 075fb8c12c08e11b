"""Which device and dtype to compute with, and how much memory is really available."""

from pathlib import Path

import psutil
import torch

from loire.base.config import DType, EngineOptions
from loire.base.errors import ConfigError

TORCH_DTYPES: dict[str, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
KV_CACHE_DTYPES: dict[str, torch.dtype] = {**TORCH_DTYPES, "int8": torch.int8}

_CGROUP_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


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
    """Bytes that could be taken now: on the device, or on the host within its cgroup's limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    available = int(psutil.virtual_memory().available)
    for limit_path, usage_path in _CGROUP_LIMITS:
        limit, usage = _read_number(limit_path), _read_number(usage_path)
        if limit is not None and usage is not None:
            available = min(available, max(limit - usage, 0))
    return available


def _read_number(path: str) -> int | None:
    """A cgroup file's number; None if there is no such file or it says "max"."""
    try:
        text = Path(path).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
