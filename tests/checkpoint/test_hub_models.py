"""Models of the Hugging Face hub, without a network: what is here, in part or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import LLAMA

from loire.base.errors import ModelNotFoundError, UnsupportedModelError
from loire.checkpoint import store
from loire.checkpoint.hub_cache import name_of


def write_snapshot(cache: Path, *files: str) -> Path:
    """A model in the hub's cache, as the hub's library lays it out."""
    repository = cache / "models--org--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    for name in files:
        (snapshot / name).write_text('{"weight_map": {"x": "model-1.safetensors"}}')
    return snapshot


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_hub_model_works_offline_once_pulled(hub_cache: Path) -> None:
    snapshot = write_snapshot(hub_cache, "config.json", "model.safetensors")
    for allow_download in (False, True):
        assert store.resolve_model("org/name", allow_download=allow_download) == snapshot
    assert name_of(snapshot) == "org/name"
    assert name_of(snapshot / "model.safetensors") == "model.safetensors"


def test_a_hub_model_that_is_not_here(hub_cache: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="run `loire pull org/name`"):
        store.resolve_model("org/name", allow_download=False)
    with pytest.raises(ModelNotFoundError, match="nor in the local hub cache, and the hub did not"):
        store.resolve_model("org/name")


def test_a_hub_model_that_is_here_in_part_is_completed(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = write_snapshot(hub_cache, "config.json", "model.safetensors.index.json")
    (snapshot / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(ModelNotFoundError, match="only in part"):
        store.resolve_model("org/name", allow_download=False)

    import huggingface_hub

    calls = []

    def download_rest(repository: str, *, local_files_only: bool, **options: Any) -> str:
        calls.append((repository, local_files_only))
        if not local_files_only:
            (snapshot / "model-1.safetensors").write_text("x")
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download_rest)
    assert store.resolve_model("org/name") == snapshot
    assert store.resolve_model("org/name") == snapshot
    assert calls == [("org/name", True), ("org/name", False), ("org/name", True)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "org/name, config.json: model type 'mamba' is not supported; "
         "Loire runs .*llama"),
        ({"hidden_act": "relu6"}, "activation 'relu6' is not supported"),
    ],
)  # fmt: skip
def test_a_hub_model_that_cannot_run_is_not_downloaded(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    snapshot = write_snapshot(hub_cache, "config.json", "model.safetensors.index.json")
    (snapshot / "config.json").write_text(json.dumps({**LLAMA, **changes}))

    import huggingface_hub

    calls = []

    def download(repository: str, *, local_files_only: bool, **options: Any) -> str:
        calls.append(local_files_only)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(UnsupportedModelError, match=message):
        store.resolve_model("org/name")
    assert calls == [True]


def test_a_hub_repository_without_a_configuration(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    def nothing(repository: str, file: str) -> str:
        raise EntryNotFoundError("404")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", nothing)
    with pytest.raises(UnsupportedModelError, match=r"org/name has no config\.json, .* GGUF file"):
        store.resolve_model("org/name")
