"""Constraints of the sequences in the batch: which tokens may come next, worked out on a thread.

A mask depends on the tokens before it alone, so the next one is begun as soon as a token is
sampled: it is computed while the next step is scheduled and the model computes.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from loire.base.errors import LoireError
from loire.base.structured_outputs import StructuredOutputs
from loire.text.grammar import GrammarCompiler, grammar_thread
from loire.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher


class ConstraintError(LoireError):
    """A constraint that cannot go on; its sequence must end."""


class ConstraintFactory:
    """Makes the constraints of one model's sequences. Costs nothing until the first is made.

    tokenizer: called once, with the first constraint. vocab_size: columns of the logits, which
    may be more than the tokenizer knows.
    """

    def __init__(self, tokenizer: Callable[[], Tokenizer], vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._tokenizer = tokenizer
        self._thread: ThreadPoolExecutor | None = None
        self._compiler: GrammarCompiler | None = None

    def constraint(
        self, spec: StructuredOutputs, output_token_ids: Sequence[int]
    ) -> "SequenceConstraint":
        """The constraint of a sequence that has written output_token_ids already."""
        if self._thread is None:
            self._thread = grammar_thread()
        return SequenceConstraint(self, self._thread, spec, output_token_ids)

    def matcher(self, spec: StructuredOutputs) -> "LLMatcher":
        """A matcher at the beginning of an output; on the thread alone."""
        if self._compiler is None:
            self._compiler = GrammarCompiler(self._tokenizer())
        return self._compiler.matcher(spec)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a complete output; on the thread alone."""
        assert self._compiler is not None, "the first matcher made it"
        return self._compiler.eos_token_ids


class SequenceConstraint:
    """What one sequence may write next. Its methods return at once, except `forbidden`."""

    def __init__(
        self,
        factory: ConstraintFactory,
        thread: ThreadPoolExecutor,
        spec: StructuredOutputs,
        output_token_ids: Sequence[int],
    ) -> None:
        self._factory = factory
        self._thread = thread
        self._matcher: LLMatcher | None = None
        self._forbidden: Future[Tensor] = thread.submit(self._begin, spec, output_token_ids)

    def record(self, token_id: int) -> None:
        """Go on behind a token that was sampled."""
        self._forbidden = self._thread.submit(self._advance, self._forbidden, token_id)

    def forbidden(self) -> Tensor:
        """bool [V] on the CPU: the tokens that may not come next; waits until that is known.

        Raises ConstraintError if that cannot be told, or nothing may come: the sequence ends
        rather than leave its constraint.
        """
        try:
            return self._forbidden.result()
        except Exception as error:  # whatever it was, it concerns one sequence alone
            raise ConstraintError(f"the constraint cannot go on: {error}") from error

    def _begin(self, spec: StructuredOutputs, output_token_ids: Sequence[int]) -> Tensor:
        self._matcher = self._factory.matcher(spec)
        return self._consume(self._matcher, output_token_ids)

    def _advance(self, before: Future[Tensor], token_id: int) -> Tensor:
        forbidden = before.result()  # ended already: one thread does all in order
        assert self._matcher is not None
        if token_id in self._factory.eos_token_ids:
            return forbidden  # complete; a row that ran ahead is dropped with what it samples
        return self._consume(self._matcher, (token_id,))

    def _consume(self, matcher: "LLMatcher", token_ids: Sequence[int]) -> Tensor:
        if token_ids and not matcher.consume_tokens(list(token_ids)):
            raise ConstraintError(matcher.get_error() or f"{token_ids[-1]} is not allowed")
        bits = matcher.compute_bitmask()
        if matcher.is_error():
            raise ConstraintError(matcher.get_error())
        allowed = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")
        forbidden = np.ones(self._factory.vocab_size, np.bool_)
        known = min(len(allowed), len(forbidden))
        forbidden[:known] = allowed[:known] == 0
        if forbidden.all():
            raise ConstraintError("no token may come next")
        return torch.from_numpy(forbidden)
