"""From what a user asks to what the engine takes: checked, resolved, with a seed.

Everything that would fail later is refused here, with the numbers.
"""

import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from loire.base import request_values as values
from loire.base.errors import PromptTooLongError, RequestError
from loire.base.messages import EngineRequest
from loire.base.sampling import SamplingParams
from loire.base.structured_outputs import StructuredOutputs
from loire.text.control_tokens import without_marks
from loire.text.form_checker import FormChecker
from loire.text.tokenizer import Tokenizer

MAX_PRIORITY = 2**31 - 1
MAX_SALT_CHARS = 4096
NORMALIZED_AWAY = 4
"""By how much a tokenizer may shorten a text at most before it looks for tokens."""
SURELY = 2
"""How many times as many tokens as are allowed a part of a text must have, which might be cut into
others where it ends, or together with the rest."""
COUNTED_WINDOWS = 8
"""Tokens of a text that is only counted, in windows."""
PART_CHARACTERS = 4
"""Of the first part, for each token that is allowed."""
PART_GROWTH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A request that was accepted: what the engine gets, and what stays on the client's side."""

    request: EngineRequest
    prompt: str | None
    arrival_s: float
    """Monotonic time."""
    shown_ids: frozenset[int] = frozenset()
    """Special tokens that stay visible in the text, such as the marks around a call."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request comes from.

    cache_salt: only requests of equal salt share prefixes. priority: lower is earlier; above 0 it
    is background work. tenant: on whose behalf; tenants are served the same number of tokens, and
    their constraints are compiled in turn. abandoned: done as soon as nobody wants it any more.
    adapter: which one it is for, by its content; "" for none.
    """

    cache_salt: str = ""
    priority: int = 0
    tenant: str = ""
    abandoned: "Future[None] | None" = None
    adapter: str = ""


HERE = Origin()
"""Of whoever does not say."""


class RequestBuilder:
    """Makes submissions for one model and window. Holds no state but the source of seeds.

    num_tokens: rows of the model's embedding and columns of its logits. A token beyond them may be
    in the tokenizer, but the model cannot compute it. sampling_defaults: what requests that leave
    it open are sampled with.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_model_len: int,
        num_tokens: int,
        seed: int | None = None,
        sampling_defaults: Mapping[str, float] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self._num_computable = num_tokens
        self._forms = FormChecker(tokenizer)
        self._sampling_defaults = dict(sampling_defaults or {})
        self._seeds = random.Random(seed) if seed is not None else random.SystemRandom()

    def build(
        self,
        request_id: str,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        origin: Origin = HERE,
        add_special_tokens: bool = True,
        shown_ids: frozenset[int] = frozenset(),
    ) -> Submission:
        """Accept a prompt, as text or as token ids, or raise RequestError.

        Raises PromptTooLongError if the prompt, or the prompt with max_tokens, exceeds the window.
        """
        arrival_s = time.monotonic()
        params = params.filled(self._sampling_defaults)
        kept = self._kept(params)
        text = values.text("prompt", prompt) if isinstance(prompt, str) else None
        if text is not None:
            if params.truncate_prompt_tokens is None:
                token_ids = tuple(self.token_ids(text, add_special_tokens))
            else:  # of a long text no more than its end is tokenized
                text = text[-self._most_characters(min(kept, self.max_model_len)) :]
                token_ids = tuple(self._last_ids(text, add_special_tokens, kept))
            text = without_marks(text)
        else:
            token_ids = values.token_ids("prompt", prompt)
        if len(token_ids) > kept:
            token_ids, text = token_ids[-kept:], None
        self._check_prompt(token_ids, params.max_tokens)
        self._check_computable("logit_bias", tuple(params.logit_bias))
        self._check_computable("stop_token_ids", params.stop_token_ids)
        self._check_computable("allowed_token_ids", params.allowed_token_ids or ())
        if params.bad_words:
            params = replace(params, bad_token_ids=self._bad_token_ids(params.bad_words))
        if params.structured_outputs is not None:
            self.check_form(params.structured_outputs, origin)
        request = EngineRequest(
            request_id=request_id,
            prompt_token_ids=token_ids,
            params=params,
            seed=self._seeds.getrandbits(64) if params.seed is None else params.seed,
            stop_token_ids=self._stop_token_ids(params),
            cache_salt=_salt(origin.cache_salt),
            adapter=origin.adapter,
            cache_marks=self._turn_ends(token_ids),
            priority=values.whole("priority", origin.priority, -MAX_PRIORITY, MAX_PRIORITY),
            tenant=origin.tenant,
        )
        return Submission(request=request, prompt=text, arrival_s=arrival_s, shown_ids=shown_ids)

    def check_form(self, form: StructuredOutputs, origin: Origin = HERE) -> None:
        """Raise RequestError if a constraint is wrong, too large, or not supported.

        Raises BusyError if too many of the same tenant's wait to be checked.
        """
        self._forms.check(form, origin.tenant, origin.abandoned)

    def check_characters(self, num_characters: int, num_windows: int = 1) -> None:
        """Raise PromptTooLongError for a text that cannot fit so many windows, before it is
        rendered or tokenized, which takes a second per MB."""
        most = num_windows * self._most_characters(self.max_model_len)
        if num_characters > most:
            windows = "that many are the window, for prompt and output together"
            if num_windows > 1:
                windows = f"{num_windows} windows, as many as are read of what is to be cut"
            raise PromptTooLongError(
                f"the prompt has {num_characters} characters, which are more than "
                f"{num_windows * self.max_model_len} tokens in any case: {windows}",
                param="prompt",
            )

    def token_ids(
        self, text: str, add_special_tokens: bool = True, num_windows: int = 1
    ) -> list[int]:
        """Of a text. Raises PromptTooLongError for one with more tokens than so many windows: of a
        text that has far more, only the beginning is tokenized, as each token takes 100 bytes."""
        self.check_characters(len(text))
        most = num_windows * self.max_model_len
        token_ids: list[int] = []
        for length in _lengths(len(text), most):
            token_ids = self.tokenizer.encode(text[:length], add_special_tokens)
            if length < len(text) and len(token_ids) > SURELY * most:
                raise PromptTooLongError(
                    f"the prompt has more than {most} tokens: its first {length} of {len(text)} "
                    f"characters have {len(token_ids)}. The window is {self.max_model_len} tokens "
                    f"for prompt and output together",
                    param="prompt",
                )
        return token_ids

    def _last_ids(self, text: str, add_special_tokens: bool, kept: int) -> list[int]:
        """Those of a text, or of an end of it that has enough of them."""
        token_ids: list[int] = []
        for length in _lengths(len(text), min(kept, self.max_model_len)):
            token_ids = self.tokenizer.encode(text[-length:], add_special_tokens)
            if len(token_ids) > SURELY * kept:
                break
        return token_ids

    def check_token_ids(self, param: str, token_ids: Sequence[int]) -> None:
        """Raise RequestError, naming the field, if a token is not in the vocabulary."""
        wrong = _first_beyond(token_ids, self.tokenizer.vocab_size)
        if wrong is not None:
            raise RequestError(
                f"{param} holds token id {values.shown(wrong)}, but the vocabulary has ids 0 to "
                f"{self.tokenizer.vocab_size - 1}",
                param=param,
            )

    def _check_computable(self, param: str, token_ids: Sequence[int]) -> None:
        """The same, also for a token of the vocabulary that the model cannot compute."""
        self.check_token_ids(param, token_ids)
        wrong = _first_beyond(token_ids, self._num_computable)
        if wrong is not None:
            raise RequestError(
                f"{param} holds token id {wrong} ({values.shown(self.tokenizer.token_text(wrong))})"
                f", which the tokenizer has, but not the model: it computes ids 0 to "
                f"{self._num_computable - 1}",
                param=param,
            )

    def _stop_token_ids(self, params: SamplingParams) -> tuple[int, ...]:
        """All tokens that end an output. A form that is complete ends it in any case."""
        goes_on = params.ignore_eos and params.structured_outputs is None
        model_stops = () if goes_on else self.tokenizer.eos_token_ids
        known = (token_id for token_id in model_stops if 0 <= token_id < self._num_computable)
        return tuple(dict.fromkeys((*params.stop_token_ids, *known)))

    def _turn_ends(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """Where the first turn of a conversation ends, and the last.

        Many share the first, a system prompt. Behind the last begins the answer, which the next
        prompt need not hold as it was: templates leave out what was thought.
        """
        stops = frozenset(self.tokenizer.eos_token_ids)
        ends = [end for end, token_id in enumerate(token_ids, 1) if token_id in stops]
        return tuple(dict.fromkeys((ends[0], ends[-1]))) if ends else ()

    def _kept(self, params: SamplingParams) -> int:
        """Tokens of a prompt that are kept, its last ones."""
        match params.truncate_prompt_tokens:
            case None:
                return sys.maxsize
            case -1:
                return max(1, self.max_model_len - (params.max_tokens or 1))
            case number:
                return number

    def _bad_token_ids(self, words: Sequence[str]) -> list[tuple[int, ...]]:
        """The tokens of words, at the beginning of a text and behind a space."""
        sequences: dict[tuple[int, ...], None] = {}  # a set that keeps their order
        for word in words:
            for text in (word.lstrip(), f" {word.lstrip()}"):
                token_ids = tuple(self.tokenizer.encode(text, add_special_tokens=False))
                sequences[token_ids] = None
        return list(sequences)

    def _check_prompt(self, token_ids: Sequence[int], max_tokens: int | None) -> None:
        if not token_ids:
            raise RequestError("the prompt is empty: it needs at least one token", param="prompt")
        self._check_length(len(token_ids), max_tokens)
        self._check_computable("prompt", token_ids)

    def _most_characters(self, num_tokens: int) -> int:
        """Of a text that has so many tokens."""
        return num_tokens * self.tokenizer.longest_token * NORMALIZED_AWAY

    def _check_length(self, num_prompt: int, max_tokens: int | None) -> None:
        window = self.max_model_len
        if num_prompt >= window:
            raise PromptTooLongError(
                f"the prompt has {num_prompt} tokens, but the window is {window} tokens for prompt "
                f"and output together: shorten the prompt to at most {window - 1} tokens",
                param="prompt",
            )
        if max_tokens is not None and num_prompt + max_tokens > window:
            raise PromptTooLongError(
                f"the prompt has {num_prompt} tokens and max_tokens asks for {max_tokens} more, "
                f"{num_prompt + max_tokens} together, but the window is {window} tokens: ask for "
                f"at most {window - num_prompt}, or shorten the prompt",
                param="max_tokens",
            )


def _lengths(num_characters: int, num_tokens: int) -> Iterator[int]:
    """Of parts of a text, growing to the whole. Few texts that fit are longer than the first."""
    length = PART_CHARACTERS * num_tokens
    while length < num_characters:
        yield length
        length *= PART_GROWTH
    yield num_characters


def _first_beyond(token_ids: Sequence[int], num_tokens: int) -> int | None:
    if not token_ids or (min(token_ids) >= 0 and max(token_ids) < num_tokens):
        return None
    return next(token_id for token_id in token_ids if not 0 <= token_id < num_tokens)


def _salt(cache_salt: str) -> str:
    """The salt, which may be of any alphabet, but not of any length: it is hashed and kept."""
    if len(values.text("cache_salt", cache_salt)) > MAX_SALT_CHARS:
        raise RequestError(
            f"cache_salt has {len(cache_salt)} characters, but may have at most {MAX_SALT_CHARS}",
            param="cache_salt",
        )
    return cache_salt
