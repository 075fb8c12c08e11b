"""How an adapter is trained, and what is taken where nothing is said. Without torch: the command's
help shows it."""

from dataclasses import dataclass

from loire.base.errors import ConfigError
from loire.checkpoint.adapter_settings import MOST_RANK

TEXTS = 256
"""To train on. New ones repair more than the same once more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How it is trained.

    Attributes:
        passes: over all texts.
        step_texts: texts of a step.
        learning_rate: the highest; it rises over the first steps and falls to 0 as a cosine does.
    """

    rank: int = 16
    passes: int = 1
    step_texts: int = 2
    learning_rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= MOST_RANK:
            raise ConfigError(f"rank must be from 1 to {MOST_RANK}, but is {self.rank}")
        if self.passes < 1:
            raise ConfigError(f"passes must be at least 1, but is {self.passes}")
        if not 0 < self.learning_rate < 1:
            raise ConfigError(f"learning_rate must be between 0 and 1: {self.learning_rate}")


DEFAULT_TRAINING = Training()
