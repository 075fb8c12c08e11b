"""Constraints on outputs, compiled against a tokenizer by llguidance.

Compiling is bounded: in the size of the text, in the states of the lexer, and, where requests come
in, in processor time (form_checker.py). What passes there compiles in the engine as well, as both
do the same; so a bad constraint is refused before its request is queued.
"""

import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from loire.base.errors import RequestError
from loire.base.structured_outputs import StructuredOutputs
from loire.text.grammar_text import grammar_text, refuse

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    from loire.text.tokenizer import Tokenizer

MAX_COMPILED = 64
"""Compiled constraints that are kept, the latest used ones."""
MAX_LEXER_STATES = 30_000
"""At 1 to 2 kB each."""
STACK_BYTES = 256 << 20
"""Stack of a thread that compiles: the library follows rules that name rules by recursion, and
8 MB end after some 3,000. MAX_TEXT characters hold at most 9,000, which need less than this."""

_BEFORE = "\x02"
"""Put before a text that is tokenized as a continuation: some tokenizers begin each text with a
space of their own."""

_stack_size = threading.Lock()


class TokenTable(NamedTuple):
    """What compiling needs to know of a tokenizer. tokens: the bytes of each id.

    The bytes are those that the detokenizer joins, so that what is matched is what is written.
    """

    tokens: list[bytes]
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    special_token_ids: list[int]

    @classmethod
    def of(cls, tokenizer: "Tokenizer") -> "TokenTable":
        """The table of a tokenizer."""
        return cls(
            [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)],
            tokenizer.eos_token_ids,
            tokenizer.bos_token_id,
            sorted(tokenizer.special_ids | set(tokenizer.eos_token_ids)),
        )


class GrammarCompiler:
    """Compiles constraints for one tokenizer. What it has compiled it keeps, and copies.

    Safe for threads, which must be those of `grammar_threads()`. A bare TokenTable does where
    nobody asks for the tokens that the grammar leaves no choice about.
    """

    def __init__(self, tokenizer: "Tokenizer | TokenTable") -> None:
        self._tokenizer = tokenizer
        self.eos_token_ids = tokenizer.eos_token_ids
        """The tokens that end a complete output."""
        self.vocab_size = (
            len(tokenizer.tokens) if isinstance(tokenizer, TokenTable) else tokenizer.vocab_size
        )
        self._compiled: OrderedDict[StructuredOutputs, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()
        self._preparing = threading.Lock()

    def prepare(self) -> None:
        """Read in the vocabulary, which takes a second or two for a large one."""
        with self._preparing:
            _ = self._library

    def matcher(self, spec: StructuredOutputs) -> "LLMatcher":
        """A matcher at the beginning of its output, for one sequence.

        Raises RequestError if the constraint is wrong, too large, or not supported.
        """
        with self._lock:
            found = self._compiled.get(spec)
            if found is not None:
                self._compiled.move_to_end(spec)
                return found.deep_copy()
        made = self._compile(spec)
        with self._lock:
            self._compiled[spec] = made
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
            return made.deep_copy()

    def _compile(self, spec: StructuredOutputs) -> "LLMatcher":
        from llguidance import LLMatcher

        if not self.eos_token_ids:
            raise RequestError(
                "structured_outputs needs a model with an end-of-sequence token, but this one "
                "names none",
                param="structured_outputs",
            )
        self.prepare()
        matcher = LLMatcher(self._library, grammar_text(spec), log_level=0, limits=self._limits)
        # Some limits are only met when the first token is looked for.
        probe = matcher.deep_copy()
        if not probe.is_error():
            probe.compute_bitmask()
        if probe.is_error():
            raise refuse(spec, probe.get_error().replace("<non-verbose/>", "").strip())
        return matcher

    @cached_property
    def _limits(self) -> "LLParserLimits":
        from llguidance import LLParserLimits

        return LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)

    @cached_property
    def _library(self) -> "LLTokenizer":
        from llguidance import LLTokenizer

        vocabulary = cast("Any", _Vocabulary(self._tokenizer))
        return LLTokenizer(vocabulary, eos_token=list(self.eos_token_ids))


def grammar_threads(number: int) -> ThreadPoolExecutor:
    """An executor of so many threads, whose stacks are deep enough to compile on."""
    executor = ThreadPoolExecutor(number, thread_name_prefix="loire-grammar")
    together = threading.Barrier(number)
    with _stack_size:
        before = threading.stack_size(STACK_BYTES)
        try:
            # A thread is made with each task, as long as none is idle.
            for task in [executor.submit(together.wait) for _ in range(number)]:
                task.result()
        finally:
            threading.stack_size(before)
    return executor


class _Vocabulary:
    """A tokenizer in the form that llguidance takes: the bytes of all tokens, and a function."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: "Tokenizer | TokenTable") -> None:
        table = tokenizer if isinstance(tokenizer, TokenTable) else TokenTable.of(tokenizer)
        self.tokens, eos_token_ids, self.bos_token_id, self.special_token_ids = table
        self.eos_token_id = eos_token_ids[0]
        self._encode = None if isinstance(tokenizer, TokenTable) else tokenizer.encode
        self._before = self._ids_of(_BEFORE)

    def __call__(self, text: str) -> list[int]:
        """Token ids of a text that continues another; where the grammar leaves no choice, the
        output is written in these."""
        before = self._before
        ids = self._ids_of(_BEFORE + text)
        rest = ids[len(before) :]
        plain = not set(self.special_token_ids).intersection(rest)
        if ids[: len(before)] == before and plain and self._bytes(rest) == text.encode():
            return rest
        return self._longest_tokens(text.encode())

    def _ids_of(self, text: str) -> list[int]:
        return [] if self._encode is None else self._encode(text, add_special_tokens=False)

    def _bytes(self, token_ids: list[int]) -> bytes:
        return b"".join(self.tokens[token_id] for token_id in token_ids)

    def _longest_tokens(self, data: bytes) -> list[int]:
        """The longest token first, for texts that the tokenizer writes in another way."""
        token_ids = []
        start = 0
        while start < len(data):
            end = min(len(data), start + self._longest)
            while end > start and data[start:end] not in self._ids:
                end -= 1
            if end == start:
                break  # no token for this byte: the library looks at what comes before it alone
            token_ids.append(self._ids[data[start:end]])
            start = end
        return token_ids

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        special = set(self.special_token_ids)
        return {
            token: token_id
            for token_id, token in enumerate(self.tokens)
            if token and token_id not in special
        }

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._ids))
