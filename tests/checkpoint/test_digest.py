"""A model's digest says what it is, wherever it lies."""

import shutil
from pathlib import Path

from loire.checkpoint.digest import model_digest
from loire.checkpoint.open import open_checkpoint
from support.tiny_models import save_tiny_llama


def test_another_model_has_another_digest(tiny_llama: Path, tmp_path: Path) -> None:
    digest = model_digest(open_checkpoint(tiny_llama))
    copied = shutil.copytree(tiny_llama, tmp_path / "copied")
    assert model_digest(open_checkpoint(copied)) == digest
    other = save_tiny_llama(tmp_path / "other", seed=1)
    assert model_digest(open_checkpoint(other)) != digest
