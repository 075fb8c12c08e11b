"""From what a user asks to what the engine takes: checked, resolved, with a seed.

Everything that would fail later is refused here, with the numbers.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from loire.base.errors import PromptTooLongError, RequestError
from loire.base.messages import EngineRequest
from loire.base.sampling import SamplingParams
from loire.base.structured_outputs import StructuredOutputs
from loire.text.grammar import GrammarChecker
from loire.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A request that was accepted: what the engine gets, and what stays on the client's side."""

    request: EngineRequest
    prompt: str | None
    arrival_s: float
    """Monotonic time."""
    shown_ids: frozenset[int] = frozenset()
    """Special tokens that stay visible in the text, such as the marks around a call."""


class RequestBuilder:
    """Makes submissions for one model and window. Holds no state but the source of seeds."""

    def __init__(self, tokenizer: Tokenizer, max_model_len: int, seed: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self._grammars = GrammarChecker(tokenizer)
        self._seeds = random.Random(seed) if seed is not None else random.SystemRandom()

    def build(
        self,
        request_id: str,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        cache_salt: str = "",
        priority: int = 0,
        add_special_tokens: bool = True,
        shown_ids: frozenset[int] = frozenset(),
    ) -> Submission:
        """Accept a prompt, as text or as token ids, or raise RequestError.

        Raises PromptTooLongError if the prompt, or the prompt with max_tokens, exceeds the window.
        """
        arrival_s = time.monotonic()
        text = prompt if isinstance(prompt, str) else None
        if isinstance(prompt, str):
            token_ids = tuple(self.tokenizer.encode(prompt, add_special_tokens))
        else:
            token_ids = tuple(prompt)
        self._check_prompt(token_ids)
        self._check_length(len(token_ids), params.max_tokens)
        self.check_token_ids("logit_bias", tuple(params.logit_bias))
        self.check_token_ids("stop_token_ids", tuple(params.stop_token_ids))
        if params.structured_outputs is not None:
            self.check_form(params.structured_outputs)
        request = EngineRequest(
            request_id=request_id,
            prompt_token_ids=token_ids,
            params=params,
            seed=self._seeds.getrandbits(64) if params.seed is None else params.seed,
            stop_token_ids=self._stop_token_ids(params),
            cache_salt=cache_salt,
            priority=priority,
        )
        return Submission(request=request, prompt=text, arrival_s=arrival_s, shown_ids=shown_ids)

    def check_form(self, form: StructuredOutputs) -> None:
        """Raise RequestError if a constraint is wrong, too large, or not supported."""
        self._grammars.check(form)

    def _stop_token_ids(self, params: SamplingParams) -> tuple[int, ...]:
        """All tokens that end an output. A form that is complete ends it in any case."""
        goes_on = params.ignore_eos and params.structured_outputs is None
        model_stops = () if goes_on else self.tokenizer.eos_token_ids
        return tuple(dict.fromkeys((*params.stop_token_ids, *model_stops)))

    def _check_prompt(self, token_ids: Sequence[int]) -> None:
        if not token_ids:
            raise RequestError("the prompt is empty: it needs at least one token", param="prompt")
        self.check_token_ids("prompt", token_ids)

    def check_token_ids(self, param: str, token_ids: Sequence[int]) -> None:
        """Raise RequestError if an id is not in the vocabulary."""
        vocab_size = self.tokenizer.vocab_size
        for token_id in token_ids:
            if not 0 <= token_id < vocab_size:
                raise RequestError(
                    f"{param} holds token id {token_id}, but the vocabulary has ids "
                    f"0 to {vocab_size - 1}",
                    param=param,
                )

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
