"""Headers of safetensors files: what the library writes is read, and no lie gets through."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import llama_tensors, safetensors_bytes, write_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from loire.base.errors import CheckpointError, ModelError, UnsupportedModelError
from loire.checkpoint.safetensors_header import read_directory, read_file


def entry(shape: list[Any], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_the_librarys_own_files_are_read(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(12, dtype=torch.float32).reshape(3, 4),
        "b": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "c": torch.arange(5, dtype=torch.float16),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = read_directory(tmp_path)
    assert set(found) == set(tensors)
    data = (tmp_path / "model.safetensors").read_bytes()
    names = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    for name, info in found.items():
        assert info.shape == tuple(tensors[name].shape)
        assert names[info.format.name] == tensors[name].dtype
        raw = data[info.offset : info.offset + info.num_bytes]
        expected = tensors[name].flatten()
        if raw:
            assert torch.equal(torch.frombuffer(bytearray(raw), dtype=expected.dtype), expected)


def write_shards(directory: Path, **weight_map: str) -> None:
    write_safetensors(directory / "a.safetensors", {"x": np.ones(2), "y": np.ones(3)})
    write_safetensors(directory / "b.safetensors", {"z": np.ones(4)})
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_are_joined(tmp_path: Path) -> None:
    write_shards(tmp_path, x="a.safetensors", y="a.safetensors", z="b.safetensors")
    found = read_directory(tmp_path)
    assert {name: info.path.name for name, info in found.items()} == {
        "x": "a.safetensors",
        "y": "a.safetensors",
        "z": "b.safetensors",
    }


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({}, "has no weight_map"),
        ({"x": "../a.safetensors"}, "which is not a file of this directory"),
        ({"x": "/etc/passwd"}, "which is not a file of this directory"),
        ({"x": "sub/a.safetensors"}, "which is not a file of this directory"),
        ({"x": "a.bin"}, "which is not a file of this directory"),
        ({"x": "a.safetensors", "z": "c.safetensors"}, "c.safetensors, but it is missing"),
        ({"x": "a.safetensors", "w": "a.safetensors"}, "lists 1 tensors that no file holds.*'w'"),
    ],
)
def test_an_index_that_lies_is_refused(
    tmp_path: Path, weight_map: dict[str, str], message: str
) -> None:
    write_shards(tmp_path, **weight_map)
    with pytest.raises(CheckpointError, match=message):
        read_directory(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, x="a.safetensors", z="b.safetensors")
    write_safetensors(tmp_path / "b.safetensors", {"z": np.ones(4), "x": np.ones(2)})
    with pytest.raises(CheckpointError, match="'x' is in two files"):
        read_directory(tmp_path)


@pytest.mark.parametrize(
    ("header", "body", "message"),
    [
        ({"a": entry([2], 0, 8)}, 4, "ends at byte .*: it is truncated"),
        ({"a": entry([2], 0, 8)}, 12, "last tensor ends at byte"),
        ({"a": entry([3], 0, 8)}, 8, "takes 12 bytes, not the 8"),
        ({"a": entry([2], 8, 0)}, 8, "takes 8 bytes, not the -8"),
        ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, 12, "'b' begins at byte"),
        ({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}, 20, "the one before it ends at"),
        ({"a": entry([-2], 0, 8)}, 8, "has shape"),
        ({"a": entry([2.0], 0, 8)}, 8, "has shape"),
        ({"a": entry([True], 0, 4)}, 4, "has shape"),
        ({"a": entry([1] * 9, 0, 4)}, 4, "has shape"),
        ({"a": entry([2**60], 0, 8)}, 8, "has shape"),
        ({"a": entry([2], 2**70, 2**70 + 8)}, 8, "offsets"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "offsets None"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]}}, 8, "offsets"),
        ({"a": [1, 2]}, 8, "has no description"),
        ([1, 2], 0, "should hold a JSON object, not list"),
        (b'{"a": ', 0, "not valid JSON"),
        (b"\xff\xfe", 0, "not valid JSON"),
        (b"[" * 200_000, 0, "not valid JSON"),
        (
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
            8,
            "'a' occurs twice",
        ),
    ],
)
def test_a_header_that_lies_is_refused(
    tmp_path: Path, header: object, body: int, message: str
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes(header, b"\0" * body))
    with pytest.raises(CheckpointError, match=message):
        read_file(path)


def test_other_dtypes_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for dtype in ("F64", "I16", "F6_E2M3"):
        path.write_bytes(safetensors_bytes({"a": entry([1], 0, 8, dtype)}, b"\0" * 8))
        with pytest.raises(UnsupportedModelError, match=f"'a' has dtype '{dtype}'.*F32, F16, BF16"):
            read_file(path)


@pytest.mark.parametrize("length", [0, 7, 8])
def test_files_too_short_for_a_header_are_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**63)[:length])
    with pytest.raises(CheckpointError, match=r"too short|claims a header of 9223372036854775808"):
        read_file(path)


def test_a_directory_without_readable_weights_says_why(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no safetensors files"):
        read_directory(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(UnsupportedModelError, match=r"pytorch_model\.bin is a pickle"):
        read_directory(tmp_path)
    write_safetensors(tmp_path / "one.safetensors", {"x": np.ones(2)})
    assert set(read_directory(tmp_path)) == {"x"}
    write_safetensors(tmp_path / "two.safetensors", {"y": np.ones(2)})
    with pytest.raises(CheckpointError, match="2 safetensors files but no model"):
        read_directory(tmp_path)


def small_file() -> bytes:
    header = {"__metadata__": {"format": "pt"}, "a": entry([2, 3], 0, 24),
              "b": entry([4], 24, 32, "F16")}  # fmt: skip
    return safetensors_bytes(header, bytes(range(32)))


@settings(max_examples=300, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, len(small_file()) - 1), st.integers(1, 255))),
    keep=st.integers(0, len(small_file())),
)
def test_damaged_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]], keep: int
) -> None:
    data = bytearray(small_file())
    for at, value in flips:
        data[at] ^= value
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(data[:keep] if keep % 3 == 0 else data)
    size = path.stat().st_size
    try:
        tensors = read_file(path)
    except ModelError:
        return
    for tensor in tensors.values():
        assert 8 <= tensor.offset <= tensor.offset + tensor.num_bytes <= size


def test_a_whole_model_is_read(tmp_path: Path) -> None:
    expected = llama_tensors()
    write_safetensors(tmp_path / "model.safetensors", expected)
    found = read_directory(tmp_path)
    assert {name: info.shape for name, info in found.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
