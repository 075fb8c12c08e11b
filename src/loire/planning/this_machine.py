"""The machine at hand: its memory from the system, its speed from a measurement if there is one.

Bandwidth and throughput of a CPU are not guessed: they are unknown until they were measured and
saved, or are given by hand.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from loire.base.errors import ConfigError
from loire.base.machine import group_memory
from loire.planning.devices import Device

MEASUREMENT_FILE = "machine.json"
"""Name, under LOIRE_HOME, of the saved measurement."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What this machine reached."""

    bandwidth_bytes_per_s: float
    """Reading memory, all cores."""
    flops: float
    """bfloat16 matrix multiplication, all cores, operations per second."""


def this_machine(measurement_path: Path) -> Device:
    """This machine's CPU and memory, with its measured speed if that file exists.

    Raises ConfigError if the file is there but unreadable.
    """
    measured = load_measurement(measurement_path) if measurement_path.exists() else None
    return Device(
        name="this",
        label="this machine",
        memory_bytes=memory_bytes(),
        bandwidth_bytes_per_s=None if measured is None else measured.bandwidth_bytes_per_s,
        flops=None if measured is None else measured.flops,
        is_cpu=True,
        source="the operating system" if measured is None else f"measured, {measurement_path}",
    )


def memory_bytes() -> int:
    """Memory of this machine, or of the container that this process is confined to, in bytes."""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        import psutil  # where the system has no sysconf; slower to import

        total = int(psutil.virtual_memory().total)
    return min([total, *(group.limit for group in group_memory())])


def save_measurement(path: Path, measurement: Measurement) -> None:
    """Write a measurement for later plans; replaces an older one as a whole.

    Raises ConfigError if it cannot be written.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    values = {
        "bandwidth_bytes_per_s": measurement.bandwidth_bytes_per_s,
        "flops": measurement.flops,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(values) + "\n")
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def load_measurement(path: Path) -> Measurement:
    """Read what save_measurement() wrote. Raises ConfigError, naming the file."""
    try:
        if path.stat().st_size > 4096:
            raise ValueError(f"it has {path.stat().st_size} bytes, more than any measurement")
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError("it does not hold a JSON object")
        return Measurement(*(_positive(values, key) for key in ("bandwidth_bytes_per_s", "flops")))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the measurement of this machine in {path} cannot be used: {error}; delete it, or "
            f"measure again"
        ) from error


def _positive(values: dict[str, object], key: str) -> float:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise ValueError(f"{key} should be a number above 0, but is {value!r}")
    return float(value)
