"""Fixtures that several rooms use."""

import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from loire.base.long_lived import long_lived
from loire.checkpoint.store import list_models
from loire.text.chat_template import ChatTemplate
from support.quick import is_quick, starts_something

# One thread: on a busy machine torch's parallel regions wait for the slowest core at each of their
# barriers, and small models gain nothing from a second one.
torch.set_num_threads(1)

# A shell that starts the tests in the background has them ignore it, and Python keeps to that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported and collected stays: no collector looks through it again and again."""
    with long_lived():
        return (yield)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`make quick` does not even import what it would not run."""
    quick = config.option.markexpr == "quick" and collection_path.suffix == ".py"
    return True if quick and starts_something(collection_path) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make quick` runs."""
    for item in items:
        if is_quick(item):
            item.add_marker("quick")


MOST_TEMPLATES = 8
"""Whose processes are kept."""


@pytest.fixture(autouse=True, scope="session")
def shared_templates() -> Iterator[None]:
    """Engines with the same template share its process: each would wait for one of its own."""
    kept: dict[str, ChatTemplate] = {}

    def shared(sources: str | Mapping[str, str], special_tokens: Mapping[str, str]) -> ChatTemplate:
        key = repr((sources, special_tokens))
        # The latest used one comes last.
        kept[key] = kept.pop(key, None) or ChatTemplate(sources, special_tokens)
        if len(kept) > MOST_TEMPLATES:
            kept.pop(next(iter(kept))).close()  # whoever has it still would start another process
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loire.engine.frontend.ChatTemplate", shared)
        yield
    for template in kept.values():
        template.close()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny random Llama with a byte-level tokenizer and a chat template."""
    from support.tiny_models import save_tiny_llama  # imports transformers, which takes seconds

    return save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The default model; `make test` has pulled it."""
    [model] = [model for model in list_models() if model.name == "smollm2"]
    if model.path is None:
        pytest.skip("smollm2 is not in the store: run `loire pull smollm2`")
    return model.path
