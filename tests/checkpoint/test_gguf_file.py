"""GGUF headers: what the gguf library writes is read, and no lie gets through."""

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from checkpoint_files import write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from loire.base.errors import CheckpointError, ModelError, UnsupportedModelError
from loire.checkpoint.formats import FORMATS
from loire.checkpoint.gguf_file import MAX_COUNT, read_gguf

U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, dimensions: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return (
        text(name)
        + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
        + struct.pack("<IQ", kind, offset)
    )


def file_of(
    *parts: bytes,
    num_tensors: int = 0,
    num_keys: int = 0,
    version: int = 3,
    body: int = 0,
) -> bytes:
    """A file from its parts; the body is aligned to 32 bytes."""
    data = b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_keys) + b"".join(parts)
    return data + b"\0" * (-len(data) % 32) + b"\0" * body


def read_bytes(tmp_path: Path, data: bytes) -> Any:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    return read_gguf(path)


def test_the_librarys_own_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    scalars = {
        "uint8": 200, "int8": -100, "uint16": 60000, "int16": -30000, "uint32": 4 * 10**9,
        "int32": -2 * 10**9, "uint64": 10**19, "int64": -9 * 10**18, "float64": 1e300,
        "float32": 0.5, "bool": True, "string": "Loire à Nantes",
    }  # fmt: skip
    for kind, value in scalars.items():
        getattr(writer, f"add_{kind}")(f"test.{kind}", value)
    writer.add_array("test.strings", ["a", "", "é" * 300])
    writer.add_array("test.ints", [1, -2, 3])
    writer.add_array("test.floats", [0.5, -2.0])
    data = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    writer.add_tensor("x", data)
    writer.add_tensor("y", np.arange(5, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    file = read_gguf(path)
    for kind, value in scalars.items():
        assert file.metadata[f"test.{kind}"] == value, kind
        assert type(file.metadata[f"test.{kind}"]) is type(value), kind
    assert file.metadata["test.strings"] == ["a", "", "é" * 300]
    assert file.metadata["test.ints"].tolist() == [1, -2, 3]
    assert file.metadata["test.floats"].tolist() == [0.5, -2.0]
    assert set(file.tensors) == {"x", "y"}
    x = file.tensors["x"]
    assert (x.shape, x.format.name, x.num_bytes) == ((2, 3, 4), "F32", 96)
    raw = path.read_bytes()[x.offset : x.offset + x.num_bytes]
    assert np.array_equal(np.frombuffer(raw, "<f4").reshape(x.shape), data)


def test_block_formats_have_the_librarys_sizes_and_numbers(tmp_path: Path) -> None:
    for name, fmt in FORMATS.items():
        kind = gguf.GGMLQuantizationType[name]
        assert gguf.GGML_QUANT_SIZES[kind] == (fmt.block_elements, fmt.block_bytes)
        size = fmt.num_bytes(512)
        data = file_of(tensor("x", [256, 2], kind), num_tensors=1, body=size)
        info = read_bytes(tmp_path, data).tensors["x"]
        assert (info.format, info.shape, info.num_bytes) == (fmt, (2, 256), size)


def test_alignment_is_honoured(tmp_path: Path) -> None:
    parts = (key("general.alignment", U32, struct.pack("<I", 64)), tensor("x", [1]))
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + b"".join(parts)
    data = head + b"\0" * (-len(head) % 64) + b"\0" * 4
    assert read_bytes(tmp_path, data).tensors["x"].offset % 64 == 0
    assert read_bytes(tmp_path, data).tensors["x"].offset >= len(head)


def test_version_2_is_read_and_others_are_refused(tmp_path: Path) -> None:
    assert read_bytes(tmp_path, file_of(version=2)).metadata == {}
    for version in (0, 1, 4):
        with pytest.raises(CheckpointError, match=f"version {version}; versions 2 and 3"):
            read_bytes(tmp_path, file_of(version=version))
    with pytest.raises(CheckpointError, match="big-endian"):
        read_bytes(tmp_path, file_of(version=3 << 24))


HUGE = struct.pack("<Q", 2**62)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes: too short"),
        (b"GGUF", "4 bytes: too short"),
        (b"PK\x03\x04" + b"\0" * 40, "does not begin with 'GGUF'"),
        (file_of(num_tensors=2**60), "claims 1152921504606846976 entries"),
        (file_of(num_keys=2**60), "claims 1152921504606846976 entries"),
        (file_of(num_keys=1), "is damaged"),
        (file_of(HUGE + b"a", num_keys=1), "claims 4611686018427387904"),
        (file_of(text("a") + struct.pack("<I", 99), num_keys=1), "unknown value type 99"),
        (file_of(key("a", STRING, HUGE), num_keys=1), "claims 4611686018427387904"),
        (file_of(key("a", ARRAY, struct.pack("<I", U64) + HUGE), num_keys=1), "claims"),
        (file_of(key("a", ARRAY, struct.pack("<I", STRING) + HUGE), num_keys=1), "claims"),
        (file_of(key("a", ARRAY, struct.pack("<I", 77) + HUGE), num_keys=1), "elements of type 77"),
        (file_of(key("a", ARRAY, struct.pack("<I", ARRAY) + HUGE), num_keys=1), "elements of type"),
        (
            file_of(key("a", ARRAY, struct.pack("<IQ", STRING, 2) + HUGE * 3), num_keys=1),
            "claims 4611686018427387904 bytes",
        ),
        (
            file_of(*[key("a", BOOL, b"\1")] * 2, num_keys=2, body=64),
            "key 'a' occurs twice",
        ),
        (
            file_of(
                key("general.alignment", U32, struct.pack("<I", 0)), num_keys=1, body=64
            ),
            "general.alignment should be a multiple of 8",
        ),
        (
            file_of(key("general.alignment", STRING, text("32")), num_keys=1, body=64),
            "general.alignment",
        ),
        (file_of(text("x" * 70_000), num_tensors=1, body=64), "a name of 70000 bytes"),
        (file_of(tensor("x", []), num_tensors=1, body=64), "0 dimensions"),
        (file_of(tensor("x", [1] * 5), num_tensors=1, body=64), "5 dimensions"),
        (file_of(tensor("x", [0]), num_tensors=1, body=64), "has the shape"),
        (file_of(tensor("x", [2**63]), num_tensors=1, body=64), "has the shape"),
        (file_of(tensor("x", [2**40] * 4), num_tensors=1, body=64), "but the file has"),
        (file_of(tensor("x", [2]), num_tensors=1, body=4), "truncated or damaged"),
        (file_of(tensor("x", [1], 0, 2**63), num_tensors=1, body=64), "truncated or damaged"),
        (file_of(tensor("x", [1], 0, 8), num_tensors=1, body=64), "multiple of 32 bytes"),
        (file_of(tensor("x", [33], 8), num_tensors=1, body=64), "rows of 33 elements"),
        (file_of(tensor("x", [16, 2], 8), num_tensors=1, body=64), "rows of 16 elements"),
        (file_of(tensor("x", [1], 999), num_tensors=1, body=64), "unknown type 999"),
        (file_of(*[tensor("x", [1])] * 2, num_tensors=2, body=64), "'x' occurs twice"),
        (
            file_of(tensor("x", [16]), tensor("y", [1], 0, 32), num_tensors=2, body=64),
            "'y' overlaps another",
        ),
    ],
)  # fmt: skip
def test_files_that_lie_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_bytes(tmp_path, data)


def test_other_types_are_refused_by_name(tmp_path: Path) -> None:
    data = file_of(tensor("x", [256], gguf.GGMLQuantizationType.IQ1_S), num_tensors=1, body=256)
    with pytest.raises(UnsupportedModelError, match=r"'x' is stored as IQ1_S.*Q4_K"):
        read_bytes(tmp_path, data)


def test_a_count_that_the_file_could_hold_but_no_model_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    head = file_of(key("a", ARRAY, struct.pack("<IQ", STRING, MAX_COUNT + 1)), num_keys=1)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(9 * MAX_COUNT)  # takes no room on disk; would be 16 million empty strings
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=f"{MAX_COUNT + 1} entries, more than"):
            read_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def small_file(tmp_path: Path) -> bytes:
    path = write_gguf(tmp_path / "small.gguf", extra={"general.note": "x", "llama.list": [1, 2]})
    return path.read_bytes()


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    base = tmp_path_factory.getbasetemp()
    if not (base / "small.gguf").exists():
        small_file(base)
    damaged = bytearray((base / "small.gguf").read_bytes())
    header = 3000  # where counts, names, types and offsets are
    flips = st.lists(st.tuples(st.integers(0, header), st.integers(1, 255)), max_size=4)
    for at, value in data.draw(flips):
        damaged[at] ^= value
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged))) :]
    path = base / "fuzz.gguf"
    path.write_bytes(damaged)
    tracemalloc.start()
    try:
        file = read_gguf(path)
    except ModelError:
        file = None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 30 * 2**20, "a damaged length must not decide how much is allocated"
    if file is not None:
        for info in file.tensors.values():
            assert 24 <= info.offset <= info.offset + info.num_bytes <= len(damaged)
