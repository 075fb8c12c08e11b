"""Which backend is chosen."""

import pytest
import torch

from loire.base.errors import ConfigError
from loire.kernels.select import available_backends, select_backend

CPU = torch.device("cpu")


def test_the_reference_runs_anywhere() -> None:
    info = {info.name: info for info in available_backends()}
    assert info["reference"].usable
    for device in ("cpu", "cuda", "meta"):
        assert select_backend("reference", torch.device(device), torch.float32).name == "reference"


def test_every_usable_backend_can_be_selected_by_its_name() -> None:
    for info in available_backends():
        assert info.why
        if info.usable:
            assert select_backend(info.name, CPU, torch.bfloat16).name == info.name


def test_auto_takes_the_reference_off_the_cpu() -> None:
    assert select_backend("auto", torch.device("meta"), torch.bfloat16).name == "reference"
    assert select_backend("auto", CPU, torch.bfloat16).name != "reference"


def test_unknown_kernels_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'magic'.*auto, reference, cpu"):
        select_backend("magic", CPU, torch.float32)


def test_kernels_of_another_device_are_refused() -> None:
    with pytest.raises(ConfigError, match="'cpu' cannot run on device 'meta'"):
        select_backend("cpu", torch.device("meta"), torch.float32)
