"""Fixtures that several rooms use."""

from pathlib import Path

import pytest
import torch

from loire.checkpoint.store import list_models
from support.tiny_models import save_tiny_llama

# One thread: on a busy machine torch's parallel regions wait for the slowest core at each of their
# barriers, and small models gain nothing from a second one.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny random Llama with a byte-level tokenizer and a chat template."""
    return save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The default model; `make test` has pulled it."""
    [model] = [model for model in list_models() if model.name == "smollm2"]
    if model.path is None:
        pytest.skip("smollm2 is not in the store: run `loire pull smollm2`")
    return model.path
