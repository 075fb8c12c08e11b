"""From logits to tokens."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LogitEdits:
    """What is added to single logits: a bias, or minus infinity where a token may not come.

    Row r has the edits starts[r] up to starts[r + 1]; all on the logits' device.
    """

    starts: Tensor
    """int64 [L + 1]."""
    tokens: Tensor
    """int64 [N]."""
    addends: Tensor
    """float32 [N]."""


@dataclass(frozen=True, slots=True)
class Penalties:
    """What tokens that came before cost. Lines of counts and seen belong to sequences.

    Of a seen token the logit x becomes x / repetition if it is above 0, else x * repetition (Keskar
    et al. 2019, "CTRL"); then frequency times its count is taken off, and presence if it has one.
    """

    places: Tensor
    """int64 [L]: each row's line, or -1 for a row without penalties; no line twice."""
    counts: Tensor
    """int32 [P, V]: how often tokens came in the output; choose() counts what it chooses."""
    seen: Tensor
    """bool [P, V]: whether they came in prompt or output; likewise."""
    repetition: Tensor
    """float32 [L], with frequency and presence."""
    frequency: Tensor
    presence: Tensor


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """What each row of logits is sampled under. All [L], contiguous, on the logits' device.

    A token's weight is exp(logit / temperature). Kept are those of at least min_p times the
    largest; of these the top_k largest (the first of equals); of these the fewest of the largest
    whose weights reach top_p of the sum. Of what is kept, in the order of the vocabulary, the first
    token is drawn at which the sum of weights passes draw times the whole.
    """

    temperature: Tensor
    """float32; 0 takes the likeliest, the first of equals."""
    min_p: Tensor
    """float32; 0 keeps all."""
    top_k: Tensor
    """int64; the vocabulary's size or more keeps all."""
    top_p: Tensor
    """float32; 1 keeps all."""
    draw: Tensor
    """float64, in [0, 1)."""
    edits: LogitEdits | None = None
    penalties: Penalties | None = None
    allowed: Tensor | None = None
    """int32 [L, ceil(V / 32)]: bit t % 32 of word t // 32 says whether token t may come."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A token of each row."""

    tokens: Tensor
    """int64 [L], always in the vocabulary; of a row that is not finite: any."""
    finite: Tensor
    """bool [L]: whether all its logits were, as they were given."""


class SamplingKernels(Protocol):
    """Chooses tokens."""

    def choose(self, logits: Tensor, rows: SamplingRows) -> Chosen:
        """A token from each row of logits, float32 [L, V], which may be overwritten.

        In this order: edits, penalties, what is not allowed, then the likeliest or a draw. A row's
        token depends on nothing but that row.
        """
        ...
