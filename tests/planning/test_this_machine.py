"""This machine as a device: memory from the system, speed only from a measurement."""

from pathlib import Path

import psutil
import pytest

from loire.base.errors import ConfigError
from loire.planning.this_machine import (
    Measurement,
    load_measurement,
    memory_bytes,
    save_measurement,
    this_machine,
)


def test_memory_is_the_systems_or_the_containers() -> None:
    total = psutil.virtual_memory().total
    assert 2**28 < memory_bytes() <= total


def test_speed_is_unknown_until_measured(tmp_path: Path) -> None:
    path = tmp_path / "home" / "machine.json"
    before = this_machine(path)
    assert before.is_cpu
    assert before.bandwidth_bytes_per_s is None
    assert before.flops is None
    save_measurement(path, Measurement(2.8e10, 1.6e12))
    after = this_machine(path)
    assert after.bandwidth_bytes_per_s == 2.8e10
    assert after.flops == 1.6e12
    assert [entry.name for entry in path.parent.iterdir()] == ["machine.json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1, 2]",
        '{"bandwidth_bytes_per_s": 1e10}',
        '{"bandwidth_bytes_per_s": 0, "flops": 1}',
        '{"bandwidth_bytes_per_s": true, "flops": 1}',
        '{"bandwidth_bytes_per_s": NaN, "flops": 1}',
        '{"bandwidth_bytes_per_s": Infinity, "flops": 1}',
        " " * 5000 + "{}",
    ],
)
def test_a_damaged_measurement_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "machine.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"machine\.json"):
        load_measurement(path)
