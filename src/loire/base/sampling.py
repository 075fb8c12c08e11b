"""How one request wants its tokens chosen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

from loire.base import request_values as values
from loire.base.errors import RequestError
from loire.base.structured_outputs import StructuredOutputs

Pooling = Literal["mean", "last"]

NEUTRAL: Mapping[str, float] = MappingProxyType(
    {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
)
"""What a model's makers may recommend otherwise, and the values that change nothing."""
_OPEN: Any = None
MAX_LOGPROBS = 20
"""Most alternatives per token that can be asked for, as in the OpenAI API."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Parameters of sampling, under the names that vLLM and the OpenAI API use.

    temperature, top_k, top_p, min_p and repetition_penalty that are not given (or None) are those
    that the model's makers recommend; they are filled in when a request is built, and until then
    hold the values that change nothing.

    Attributes:
        n: completions per prompt; they share the prompt's KV blocks.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_k: keep the k likeliest tokens; 0 or -1 keeps all.
        top_p: keep the smallest set of likeliest tokens whose probabilities reach top_p.
        min_p: keep tokens at least min_p times as likely as the likeliest.
        repetition_penalty: divides (multiplies, if negative) the logit of each token that
            occurs in prompt or output (Keskar et al. 2019, CTRL).
        frequency_penalty: subtracted from a logit per occurrence in the output.
        presence_penalty: subtracted once from the logit of each token in the output.
        logit_bias: added to the logits of single tokens, in -100..100.
        seed: 64-bit seed; a request without one is given one at admission.
        max_tokens: most tokens to generate; None is as many as fit into the window.
        min_tokens: no stop token or stop string ends the output before that many tokens.
        stop: strings that end the output.
        stop_token_ids: token ids that end the output, beside the model's own.
        include_stop_str_in_output: keep the stop string at the end of the text.
        ignore_eos: the model's end-of-sequence tokens do not end the output.
        logprobs: how many of the likeliest tokens to report per output token, beside the
            chosen one; None reports nothing.
        prompt_logprobs: the same for the prompt's tokens.
        skip_special_tokens: leave special tokens out of the text.
        allowed_token_ids: the only tokens that may come; the model's end tokens are not among
            them unless they are listed.
        bad_words: texts that must not be written, wherever they begin with a token of their own.
        bad_token_ids: the tokens of bad_words, filled in when a request is built: the last of each
            does not come after the others.
        truncate_prompt_tokens: keep the last so many tokens of the prompt; -1 keeps what leaves
            room for max_tokens (or one token) in the window.
        structured_outputs: the form that the output must have. It ends when the form is complete
            (even with ignore_eos); an output of max_tokens may be cut inside it.
        pooling: instead of an answer, the prompt's hidden states after the final norm as one
            vector of length 1: their mean, or the last one. max_tokens must be 1; the one token
            means nothing.
        left_open: names of the parameters that were not given, and that the model may decide.

    Raises RequestError, naming the field, if a value is out of range.
    """

    n: int = 1
    temperature: float = _OPEN
    top_k: int = _OPEN
    top_p: float = _OPEN
    min_p: float = _OPEN
    repetition_penalty: float = _OPEN
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] = ()
    bad_token_ids: Sequence[Sequence[int]] = ()
    truncate_prompt_tokens: int | None = None
    structured_outputs: StructuredOutputs | None = None
    pooling: Pooling | None = None
    left_open: frozenset[str] = field(default=frozenset(), compare=False)

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in NEUTRAL}
        # A copy with another value has decided; one of the same value has not.
        still = {name for name in self.left_open if given.get(name) == NEUTRAL.get(name)}
        missing = {name for name, value in given.items() if value is None}
        object.__setattr__(self, "left_open", frozenset(still | missing))
        for name in missing:
            object.__setattr__(self, name, NEUTRAL[name])
        for name, (low, high) in _WHOLE.items():
            self._settle(name, values.whole, low, high)
        for name, (least, most) in _NUMBERS.items():
            self._settle(name, values.number, least, most)
        for name in _FLAGS:
            self._settle(name, values.flag)
        for name in _OPTIONAL:
            if getattr(self, name) is not None:
                self._settle(name, values.whole, *_OPTIONAL[name])
        object.__setattr__(self, "top_k", max(self.top_k, 0))
        object.__setattr__(self, "stop", _filled_texts("stop", self.stop))
        object.__setattr__(self, "bad_words", _filled_texts("bad_words", self.bad_words))
        self._settle("stop_token_ids", values.token_ids)
        if self.allowed_token_ids is not None:
            self._settle("allowed_token_ids", values.token_ids)
        bad = tuple(values.token_ids("bad_token_ids", ids) for ids in self.bad_token_ids)
        object.__setattr__(self, "bad_token_ids", bad)
        object.__setattr__(self, "logit_bias", _bias(self.logit_bias))
        self._check()

    def _settle(self, name: str, check: Callable[..., object], *bounds: float) -> None:
        """Put the checked value of a field in its place."""
        object.__setattr__(self, name, check(name, getattr(self, name), *bounds))

    def _check(self) -> None:
        form = self.structured_outputs
        if form is not None and not isinstance(form, StructuredOutputs):
            raise RequestError(
                f"structured_outputs must be StructuredOutputs, but is {values.shown(form)}",
                param="structured_outputs",
            )
        if self.pooling is not None:
            values.one_of("pooling", self.pooling, get_args(Pooling))
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise RequestError(
                "allowed_token_ids is empty, so that no token could come: leave it out",
                param="allowed_token_ids",
            )
        if self.truncate_prompt_tokens == 0:
            raise RequestError(
                "truncate_prompt_tokens is 0, which leaves no prompt: it must be at least 1, or -1",
                param="truncate_prompt_tokens",
            )
        if self.top_p == 0.0:
            raise RequestError("top_p must be above 0, but is 0", param="top_p")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens ({self.min_tokens}) exceeds max_tokens ({self.max_tokens})",
                param="min_tokens",
            )
        if self.pooling is not None and (self.n, self.max_tokens) != (1, 1):
            raise RequestError(
                f"pooling gives one vector per prompt: n and max_tokens must be 1, but are "
                f"{self.n} and {self.max_tokens}",
                param="pooling",
            )

    def filled(self, defaults: Mapping[str, float]) -> "SamplingParams":
        """With these values for what was left open; names as in NEUTRAL."""
        if not self.left_open:
            return self
        chosen: dict[str, Any] = {
            name: value for name, value in defaults.items() if name in self.left_open
        }
        return replace(self, **chosen, left_open=frozenset())

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < 1e-5

    @property
    def reads_whole_prompt(self) -> bool:
        """Whether every prompt position must be computed, so that no cached block can stand in."""
        return self.prompt_logprobs is not None or self.pooling is not None


_WHOLE = {"n": (1, 128), "top_k": (-1, values.MAX_INT), "min_tokens": (0, values.MAX_INT)}
_OPTIONAL = {
    "seed": (-(2**63), 2**64 - 1),
    "max_tokens": (1, values.MAX_INT),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
    "truncate_prompt_tokens": (-1, values.MAX_INT),
}
_NUMBERS = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
}
_FLAGS = ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens")


def _filled_texts(name: str, given: object) -> tuple[str, ...]:
    with values.under(name):
        texts = values.texts(name, (given,) if isinstance(given, str) else given)
    if not all(text.strip() if name == "bad_words" else text for text in texts):
        raise RequestError(f"{name} holds an empty string, which would match at once", param=name)
    return texts


def _bias(bias: object) -> Mapping[int, float]:
    """Token ids may be written as text, as they are in JSON."""
    if not isinstance(bias, Mapping):
        raise RequestError(
            f"logit_bias must map token ids to -100..100, but is {values.shown(bias)}",
            param="logit_bias",
        )
    with values.under("logit_bias"):
        return MappingProxyType(
            {
                _biased_id(token_id): values.number(f"logit_bias of {token_id}", by, -100.0, 100.0)
                for token_id, by in bias.items()
            }
        )


def _biased_id(token_id: object) -> int:
    if isinstance(token_id, str) and token_id.isascii() and token_id.isdecimal():
        token_id = int(token_id[:11])
    return values.whole("a token id of logit_bias", token_id, 0, values.MAX_INT)
