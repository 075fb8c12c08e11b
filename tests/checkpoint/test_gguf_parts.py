"""Models in several GGUF files, and files that are GGUF without saying so in their name."""

from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import gguf_name, llama_tensors, write_gguf

from loire.base.errors import CheckpointError
from loire.checkpoint.open import open_checkpoint


def split(folder: Path, suffix: str = ".gguf", **changes: Any) -> list[Path]:
    """The tiny Llama in three parts; changes are of the last part's keys."""
    tensors = {gguf_name(name): tensor for name, tensor in llama_tensors().items()}
    paths = []
    for index in range(3):
        own = {n: t for n, t in tensors.items() if n.startswith(f"blk.{index}.") or (
            index == 2 and not n.startswith("blk."))}  # fmt: skip
        extra = {"split.no": index, "split.count": 3, "split.tensors.count": len(tensors)}
        extra |= changes if index == 2 else {}
        path = folder / f"model-{index + 1:05}-of-00003{suffix}"
        paths.append(write_gguf(path, tensors=own, extra=extra))
    return paths


@pytest.mark.parametrize("suffix", [".gguf", ".GGUF"])
def test_any_part_opens_the_whole_model(tmp_path: Path, suffix: str) -> None:
    whole = open_checkpoint(write_gguf(tmp_path / "whole.gguf"))
    paths = split(tmp_path, suffix)
    for path in paths:
        checkpoint = open_checkpoint(path)
        assert checkpoint.description == whole.description
        assert checkpoint.num_parameters == whole.num_parameters
        assert {info.path for info in checkpoint.tensors.values()} == set(paths)
        for name, info in checkpoint.tensors.items():
            data = info.path.read_bytes()[info.offset : info.offset + info.num_bytes]
            other = whole.tensors[name]
            assert data == other.path.read_bytes()[other.offset : other.offset + other.num_bytes]


def test_parts_that_are_missing_or_of_another_model(tmp_path: Path) -> None:
    paths = split(tmp_path)
    paths[1].rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.gguf is missing"):
        open_checkpoint(paths[0])
    (tmp_path / "elsewhere").rename(paths[1])
    split(tmp_path, **{"split.no": 1})
    with pytest.raises(CheckpointError, match=r"part 1 \(from 0\) of 3, not 2 of 3"):
        open_checkpoint(paths[0])
    tensors = {"blk.0.attn_norm.weight": llama_tensors()["model.norm.weight"]}
    write_gguf(paths[2], tensors=tensors, extra={"split.no": 2, "split.count": 3})
    with pytest.raises(CheckpointError, match=r"'blk\.0\.attn_norm\.weight' is in another part"):
        open_checkpoint(paths[0])
    tensors = {"other": llama_tensors()["model.norm.weight"]}
    write_gguf(paths[2], tensors=tensors, extra={"split.no": 2, "split.count": 3})
    with pytest.raises(CheckpointError, match="hold 19 tensors, but should hold 21"):
        open_checkpoint(paths[0])
    paths[0].rename(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match="is not named like one: NAME-00001-of-00003"):
        open_checkpoint(tmp_path / "model.gguf")


def test_a_file_is_gguf_by_its_name_or_by_how_it_begins(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    expected = open_checkpoint(path).description
    for name in (
        "MODEL.GGUF",
        "sha256-6a0746a1ec1aef3e7ec53868f220ff6e389f6f8ef87a01d77c96807de94ca2aa",
    ):
        path = path.rename(tmp_path / name)
        assert open_checkpoint(path).description == expected
    (tmp_path / "notes").write_text("no model")
    with pytest.raises(CheckpointError, match="neither a model directory nor a GGUF file"):
        open_checkpoint(tmp_path / "notes")
