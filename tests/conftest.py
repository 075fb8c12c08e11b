"""Fixtures that several rooms use."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from loire.checkpoint.store import list_models  # noqa: E402
from support.tiny_models import save_tiny_llama  # noqa: E402


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny random Llama with a byte-level tokenizer and a chat template."""
    return save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def smollm2() -> Iterator[Path]:
    """The default model; `make test` has pulled it."""
    [model] = [model for model in list_models() if model.name == "smollm2"]
    if model.path is None:
        pytest.skip("smollm2 is not in the store: run `loire pull smollm2`")
    yield model.path
