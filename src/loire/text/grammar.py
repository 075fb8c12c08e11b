"""Constraints on outputs, compiled against a tokenizer by llguidance.

Compiling is bounded: in the size of the text, in the work of the lexer and the parser, in the
states they may hold. What passes `check` here compiles in the engine as well, as both use the
same limits; so a bad constraint is refused before its request is queued.
"""

import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from loire.base.errors import RequestError
from loire.base.structured_outputs import StructuredOutputs
from loire.text.grammar_text import grammar_text, refuse
from loire.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

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


class GrammarCompiler:
    """Compiles constraints for one tokenizer. What it has compiled it keeps, and copies.

    Not thread-safe, and to be used on a thread of `grammar_thread()`.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._compiled: OrderedDict[StructuredOutputs, LLMatcher] = OrderedDict()

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a complete output."""
        return self.tokenizer.eos_token_ids

    def matcher(self, spec: StructuredOutputs) -> "LLMatcher":
        """A matcher at the beginning of its output, for one sequence.

        Raises RequestError if the constraint is wrong, too large, or not supported.
        """
        if spec in self._compiled:
            self._compiled.move_to_end(spec)
        else:
            self._compiled[spec] = self._compile(spec)
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
        return self._compiled[spec].deep_copy()

    def _compile(self, spec: StructuredOutputs) -> "LLMatcher":
        from llguidance import LLMatcher

        if not self.eos_token_ids:
            raise RequestError(
                "structured_outputs needs a model with an end-of-sequence token, but this one "
                "names none",
                param="structured_outputs",
            )
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

        vocabulary = cast("Any", _Vocabulary(self.tokenizer))
        return LLTokenizer(vocabulary, eos_token=list(self.eos_token_ids))


class GrammarChecker:
    """Checks constraints on the client's side, from any thread."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._compiler = GrammarCompiler(tokenizer)

    def check(self, spec: StructuredOutputs) -> None:
        """Raise RequestError if the constraint is wrong, too large, or not supported."""
        self._thread.submit(self._compiler.matcher, spec).result()

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        return grammar_thread()


def grammar_thread() -> ThreadPoolExecutor:
    """An executor of one thread, whose stack is deep enough to compile on."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="loire-grammar")
    with _stack_size:
        before = threading.stack_size(STACK_BYTES)
        try:
            executor.submit(int).result()  # the thread is made with the first task
        finally:
            threading.stack_size(before)
    return executor


class _Vocabulary:
    """A tokenizer in the form that llguidance takes: the bytes of all tokens, and a function.

    The bytes are those that the detokenizer joins, so that what is matched is what is written.
    """

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id = tokenizer.eos_token_ids[0]
        self.bos_token_id = tokenizer.bos_token_id
        self.special_token_ids = sorted(tokenizer.special_ids | set(tokenizer.eos_token_ids))
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
        self._tokenizer = tokenizer
        self._before = tokenizer.encode(_BEFORE, add_special_tokens=False)

    def __call__(self, text: str) -> list[int]:
        """Token ids of a text that continues another; where the grammar leaves no choice, the
        output is written in these."""
        before = self._before
        ids = self._tokenizer.encode(_BEFORE + text, add_special_tokens=False)
        rest = ids[len(before) :]
        plain = self._tokenizer.special_ids.isdisjoint(rest)
        if ids[: len(before)] == before and plain and self._bytes(rest) == text.encode():
            return rest
        return self._longest_tokens(text.encode())

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
