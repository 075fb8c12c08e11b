"""Constraints of the sequences in the batch: which tokens may come next.

A mask depends on the tokens before it alone, so the next ones are begun as soon as a step's tokens
are sampled: on a thread, for all rows together, while the next step is scheduled and computed.
Compiling is done on threads of its own; `ready` says when it is over, so that a sequence can enter
the batch with its first mask and nobody waits for it.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from loire.base.errors import LoireError
from loire.base.structured_outputs import OUTGROWN, StructuredOutputs
from loire.text.grammar import MAX_COMPILED, GrammarCompiler, grammar_threads
from loire.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher

NUM_COMPILING = 2
"""Constraints that are compiled at the same time."""
MAX_COMPILING = 8
"""Constraints that are compiled or wait for it; sequences with others wait for their turn."""
MASK_THREADS = 2
"""Threads that fill the masks of one step; the processors are busy with the next one."""

Bits = NDArray[np.int32]

log = logging.getLogger("loire.engine")


class ConstraintError(LoireError):
    """A constraint that cannot go on; its sequence must end."""


@dataclass(frozen=True, slots=True)
class _Beginning:
    """A compiled constraint. matcher: to be copied; bits: the mask of the first token."""

    matcher: "LLMatcher"
    bits: Bits


class ConstraintFactory:
    """Makes the constraints of one model's sequences, and fills their masks.

    Costs nothing until prepare() or the first constraint. tokenizer: called once. vocab_size:
    columns V of the logits, which may be more than the tokenizer knows.
    """

    def __init__(self, tokenizer: Callable[[], Tokenizer], vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._beginnings: OrderedDict[StructuredOutputs, Future[_Beginning]] = OrderedDict()
        self._sampled: dict[SequenceConstraint, tuple[int, threading.Event]] = {}
        """What was recorded since the last advance()."""

    def prepare(self) -> None:
        """Read in the vocabulary on a thread, so that the first constraint finds it there."""
        self._compiling.submit(lambda: self._compiler.prepare())

    def ready(self, spec: StructuredOutputs) -> bool:
        """Whether a sequence with this constraint may begin without waiting; begins to compile.

        One that cannot be compiled is ready as well: its sequence ends with the error.
        """
        with self._lock:
            compiling = sum(not future.done() for future in self._beginnings.values())
            crowded = spec not in self._beginnings and compiling >= MAX_COMPILING
        return not crowded and self._beginning(spec).done()

    def constraint(
        self, spec: StructuredOutputs, output_token_ids: Sequence[int]
    ) -> "SequenceConstraint":
        """The constraint of a sequence that has written output_token_ids already."""
        made = SequenceConstraint(self)
        beginning = self._beginning(spec)

        def begin(_: "Future[_Beginning]") -> None:
            self._filling.submit(made._begin, beginning, tuple(output_token_ids))

        beginning.add_done_callback(begin)
        return made

    def record(self, constraint: "SequenceConstraint", token_id: int) -> None:
        """Note a token that was sampled; advance() goes on behind it."""
        if constraint in self._sampled:
            self.advance()
        constraint._known.wait()  # in the engine it is known: the token was sampled with it
        constraint._known = threading.Event()
        self._sampled[constraint] = (token_id, constraint._known)

    def advance(self) -> None:
        """Begin with the masks behind all tokens that were recorded."""
        if self._sampled:
            sampled, self._sampled = self._sampled, {}
            self._filling.submit(self._go_on, sampled)

    def masks(self, num_rows: int) -> Bits:
        """int32 [rows, words], to be filled: a bit for each token that the tokenizer knows."""
        return np.zeros((num_rows, len(self._inside)), np.int32)

    def _beginning(self, spec: StructuredOutputs) -> "Future[_Beginning]":
        with self._lock:
            found = self._beginnings.get(spec)
            if found is None:
                found = self._compiling.submit(self._begin, spec)
                self._beginnings[spec] = found
                if len(self._beginnings) > MAX_COMPILED:
                    self._beginnings.popitem(last=False)
            self._beginnings.move_to_end(spec)
            return found

    def _begin(self, spec: StructuredOutputs) -> _Beginning:
        matcher = self._compiler.matcher(spec)
        bits = self.masks(1)
        self.fill([matcher], bits)
        if matcher.is_error():
            raise ConstraintError(matcher.get_error())
        return _Beginning(matcher, bits[0])

    def fill(self, matchers: Sequence["LLMatcher"], bits: Bits) -> None:
        """Fill masks, int32 [rows, words], of which each bit says whether a token may come."""
        assert bits.flags["C_CONTIGUOUS"]
        rows, words = bits.shape
        if rows == 1:
            matchers[0].unsafe_compute_mask_ptr(bits.ctypes.data, words * 4)
        else:
            pairs = [(matcher, row) for row, matcher in enumerate(matchers)]
            self._executor.unsafe_compute_mask_ptr(pairs, bits.ctypes.data, words * 4, rows)
        bits &= self._inside

    def _go_on(self, sampled: Mapping["SequenceConstraint", tuple[int, threading.Event]]) -> None:
        going = [one for one, (token_id, _) in sampled.items() if one._consume(token_id)]
        bits = self.masks(len(going))
        try:
            if going:
                self.fill(
                    [constraint._matcher for constraint in going if constraint._matcher], bits
                )
        except Exception as error:  # noqa: BLE001  whatever it was, these sequences end with it
            for constraint in going:
                constraint._error = _said(error)
        for constraint, row in zip(going, bits, strict=True):
            constraint._take(row)
        for _, known in sampled.values():
            known.set()

    @cached_property
    def _inside(self) -> Bits:
        """int32 [words]: the tokens that the model has, of those that the tokenizer knows."""
        words = (self._compiler.vocab_size + 31) // 32
        inside = np.zeros(words * 32, np.uint8)
        inside[: self.vocab_size] = 1
        return np.packbits(inside, bitorder="little").view(np.int32)

    @cached_property
    def _compiler(self) -> GrammarCompiler:
        with self._lock:
            return GrammarCompiler(self._tokenizer())

    @cached_property
    def _compiling(self) -> ThreadPoolExecutor:
        return grammar_threads(NUM_COMPILING)

    @cached_property
    def _filling(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix="loire-masks")

    @cached_property
    def _executor(self) -> "LLExecutor":
        from llguidance import LLExecutor

        return LLExecutor(MASK_THREADS)


def _said(error: Exception) -> str:
    """What a sequence ends with. An error that nobody foresaw is a defect: the log has it whole."""
    if isinstance(error, LoireError):
        return str(error)
    log.error("a constraint fails", exc_info=error)
    return f"{type(error).__name__}: {error}"


def _outgrown(matcher: "LLMatcher") -> str:
    """What is wrong with a matcher that has met a bound; empty if nothing is."""
    error = matcher.get_error().replace("<non-verbose/>", "").strip()
    return f"{OUTGROWN}: {error}" if error else ""


class SequenceConstraint:
    """What one sequence may write next. Made by ConstraintFactory.constraint()."""

    def __init__(self, factory: ConstraintFactory) -> None:
        self._factory = factory
        self._matcher: LLMatcher | None = None
        self._bits: Bits | None = None
        self._error: str | None = None
        self._known = threading.Event()

    def record(self, token_id: int) -> None:
        """Go on behind a token that was sampled, with the factory's next advance()."""
        self._factory.record(self, token_id)

    def allowed(self) -> Bits | str:
        """int32 [words]: a bit for each token that may come; waits until that is known.

        If that cannot be told, or nothing may come, what is wrong: the sequence ends rather than
        leave its constraint.
        """
        self._factory.advance()
        self._known.wait()
        if self._error is not None:
            return f"the constraint cannot go on: {self._error}"
        assert self._bits is not None
        return self._bits

    @property
    def num_columns(self) -> int:
        """V of the logits."""
        return self._factory.vocab_size

    def _begin(self, beginning: "Future[_Beginning]", output_token_ids: Sequence[int]) -> None:
        try:
            begun = beginning.result()
            self._matcher = begun.matcher.deep_copy()
            bits = begun.bits
            if output_token_ids:
                self._matcher.consume_tokens(list(output_token_ids))
                self._factory.fill([self._matcher], bits := self._factory.masks(1))
                [bits] = bits
            self._take(bits)
        except Exception as error:  # noqa: BLE001  whatever it was, it concerns one sequence alone
            self._error = _said(error)
        finally:
            self._known.set()

    def _consume(self, token_id: int) -> bool:
        """Take in a token; whether there is a mask to fill behind it."""
        if self._error is not None or self._matcher is None:
            return False
        if token_id in self._factory._compiler.eos_token_ids:
            return False  # complete; a row that ran ahead is dropped with what it samples
        if not self._matcher.consume_token(token_id):
            self._error = _outgrown(self._matcher) or f"{token_id} is not allowed"
        return self._error is None

    def _take(self, bits: Bits) -> None:
        assert self._matcher is not None
        self._bits = bits
        if self._error is None and self._matcher.is_error():
            self._error = _outgrown(self._matcher)
        if self._error is None and not bits.any():
            self._error = "no token may come next"
