"""How one request wants its tokens chosen."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from loire.base.errors import RequestError
from loire.base.structured_outputs import StructuredOutputs

Pooling = Literal["mean", "last"]

MAX_LOGPROBS = 20
"""Most alternatives per token that can be asked for, as in the OpenAI API."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Parameters of sampling, under the names that vLLM and the OpenAI API use.

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
        structured_outputs: the form that the output must have. It ends when the form is complete
            (even with ignore_eos); an output of max_tokens may be cut inside it.
        pooling: instead of an answer, the prompt's hidden states after the final norm as one
            vector of length 1: their mean, or the last one. max_tokens must be 1; the one token
            means nothing.

    Raises RequestError, naming the field, if a value is out of range.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
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
    structured_outputs: StructuredOutputs | None = None
    pooling: Pooling | None = None

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "top_k", max(self.top_k, 0) if self.top_k == -1 else self.top_k)
        bias = MappingProxyType({int(k): float(v) for k, v in self.logit_bias.items()})
        object.__setattr__(self, "logit_bias", bias)
        self._check()

    def _check(self) -> None:
        def within(name: str, low: float, high: float) -> None:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise RequestError(
                    f"{name} must be between {low} and {high}, but is {value}", param=name
                )

        within("n", 1, 128)
        within("temperature", 0.0, 100.0)
        within("top_k", 0, 2**31 - 1)
        within("top_p", 0.0, 1.0)
        within("min_p", 0.0, 1.0)
        within("repetition_penalty", 0.01, 100.0)
        within("frequency_penalty", -2.0, 2.0)
        within("presence_penalty", -2.0, 2.0)
        within("seed", -(2**63), 2**64 - 1)
        within("max_tokens", 1, 2**31 - 1)
        within("min_tokens", 0, 2**31 - 1)
        within("logprobs", 0, MAX_LOGPROBS)
        within("prompt_logprobs", 0, MAX_LOGPROBS)
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
        if not all(self.stop):
            raise RequestError(
                "stop holds an empty string, which would match at once", param="stop"
            )
        for token_id, bias in self.logit_bias.items():
            if token_id < 0 or not -100.0 <= bias <= 100.0 or math.isnan(bias):
                raise RequestError(
                    f"logit_bias maps token ids to -100..100, but has {token_id}: {bias}",
                    param="logit_bias",
                )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < 1e-5

    @property
    def reads_whole_prompt(self) -> bool:
        """Whether every prompt position must be computed, so that no cached block can stand in."""
        return self.prompt_logprobs is not None or self.pooling is not None
