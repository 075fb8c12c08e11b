"""Settings for this room, and models that several of its tests read."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Tiny models gain nothing from threads and lose much where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def saved_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Path]:
    """Of a Family: the directory of its tiny model, saved once; nobody may change it."""
    root = tmp_path_factory.mktemp("families")

    def saved(family: Any) -> Path:
        directory: Path = root / family.name
        if not directory.exists():
            family.save(directory)
        return directory

    return saved
