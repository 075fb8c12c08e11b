"""What the sampler remembers of each sequence between steps."""

import torch
from torch import Tensor

from loire.base.step import NewSequence
from loire.execution.constraints import ConstraintFactory, SequenceConstraint


class SamplingState:
    """Parameters of one sequence and, where penalties ask for them, its token counts."""

    def __init__(
        self, new: NewSequence, constraints: ConstraintFactory, device: torch.device
    ) -> None:
        self.params = new.params
        self.seed = new.seed
        self.choice = new.choice
        self.prompt_token_ids = new.prompt_token_ids
        self.stop_token_ids = new.stop_token_ids
        self.last_token_id: int | None = None
        self.output_counts: Tensor | None = None
        """float32 [V]: occurrences in the output."""
        self.seen: Tensor | None = None
        """bool [V]: occurs in prompt or output."""
        params = new.params
        self.constraint: SequenceConstraint | None = None
        if params.structured_outputs is not None:
            self.constraint = constraints.constraint(
                params.structured_outputs, new.output_token_ids
            )
        self._pooled: Tensor | None = None
        """float64 [E]: the sum of hidden states, or the last one."""
        self.has_penalties = (
            params.repetition_penalty != 1.0
            or params.frequency_penalty != 0.0
            or params.presence_penalty != 0.0
        )
        if self.has_penalties:
            outputs = torch.tensor(new.output_token_ids, dtype=torch.int64, device=device)
            prompt = torch.tensor(new.prompt_token_ids, dtype=torch.int64, device=device)
            self.output_counts = torch.bincount(outputs, minlength=constraints.vocab_size).float()
            self.seen = self.output_counts > 0
            self.seen[prompt] = True

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_token_ids)

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

    def pooled(self) -> tuple[float, ...]:
        """What was pooled, scaled to length 1; NaN if it is not finite."""
        assert self._pooled is not None, "every prompt has a position"
        vector = self._pooled / self._pooled.norm().clamp_min(1e-12)
        return tuple(vector.float().tolist())

    def record(self, token_id: int) -> None:
        """Count a token that was sampled."""
        self.last_token_id = token_id
        if self.output_counts is not None and self.seen is not None:
            self.output_counts[token_id] += 1
            self.seen[token_id] = True
        if self.constraint is not None:
            self.constraint.record(token_id)
