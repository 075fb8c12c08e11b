"""What the sampler remembers of each sequence between steps."""

from collections.abc import Callable

from torch import Tensor

from loire.base.executor import PendingStep
from loire.base.step import NewSequence
from loire.execution.constraints import ConstraintFactory, SequenceConstraint
from loire.execution.penalty_table import PenaltyTable
from loire.execution.token_limits import TokenLimits
from loire.kernels.interface import Transfers


class SamplingState:
    """Parameters of one sequence and, where penalties ask for them, its token counts."""

    def __init__(
        self, new: NewSequence, constraints: ConstraintFactory, penalties: PenaltyTable
    ) -> None:
        self.params = new.params
        self.seed = new.seed
        self.choice = new.choice
        self.prompt_token_ids = new.prompt_token_ids
        self.stop_token_ids = new.stop_token_ids
        params = new.params
        self.constraint: SequenceConstraint | None = None
        if params.structured_outputs is not None:
            self.constraint = constraints.constraint(
                params.structured_outputs, new.output_token_ids
            )
        self.limits: TokenLimits | None = None
        if params.allowed_token_ids is not None or params.bad_token_ids:
            self.limits = TokenLimits(params, constraints.vocab_size, new.output_token_ids)
        self.sampled_in: PendingStep | None = None
        """The step whose tokens have perhaps not been recorded yet."""
        self._pooled: Tensor | None = None
        """float64 [E]: the sum of hidden states, or the last one."""
        self._penalties = penalties
        self.place = -1
        """Its line in the table of penalties, if it has any."""
        if (
            params.repetition_penalty != 1.0
            or params.frequency_penalty != 0.0
            or params.presence_penalty != 0.0
        ):
            self.place = penalties.take(new.prompt_token_ids, new.output_token_ids)

    def end(self) -> None:
        """The sequence leaves the batch."""
        if self.place >= 0:
            self._penalties.give_back(self.place)

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_token_ids)

    @property
    def looks_back(self) -> bool:
        """Whether logits depend on the tokens before in other ways than through the model."""
        return self.place >= 0 or self.records

    @property
    def records(self) -> bool:
        """Whether every token must be recorded before the next one is chosen."""
        return self.constraint is not None or (self.limits is not None and self.limits.looks_back)

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether this sequence reports on the prompt; its siblings need not repeat it."""
        return self.params.prompt_logprobs is not None and self.choice == 0

    def pool(self, hidden: Tensor) -> None:
        """Take in hidden states [T, E] of the next positions of the prompt."""
        wide = hidden.double()
        if self.params.pooling == "last" or self._pooled is None:
            self._pooled = wide[-1] if self.params.pooling == "last" else wide.sum(dim=0)
        else:
            self._pooled += wide.sum(dim=0)

    def pooled(self, transfers: Transfers) -> Callable[[], tuple[float, ...]]:
        """What was pooled, scaled to length 1; NaN if it is not finite. The function waits."""
        assert self._pooled is not None, "every prompt has a position"
        vector = self._pooled / self._pooled.norm().clamp_min(1e-12)
        fetched = transfers.fetch(vector.float())
        return lambda: tuple(fetched()[0].tolist())

    def settle(self) -> None:
        """Wait until all tokens that were sampled are recorded, if that matters."""
        if self.sampled_in is not None:
            self.sampled_in.result()
            self.sampled_in = None

    def record(self, token_id: int) -> None:
        """Go on behind a token that was sampled."""
        if self.constraint is not None:
            self.constraint.record(token_id)
        if self.limits is not None:
            self.limits.record(token_id)
