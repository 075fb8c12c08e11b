"""What all requests of the OpenAI API share: sampling parameters, streaming, usage.

Bounds on sampling parameters are those of SamplingParams.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import BaseModel, Field, model_validator

from loire.base.sampling import MAX_LOGPROBS, SamplingParams
from loire.base.structured_outputs import StructuredOutputs
from loire.server.openai.structured_protocol import StructuredFields
from loire.server.web.strict import (
    MAX_INT,
    MAX_NAME,
    MAX_STOP_LENGTH,
    MAX_STOPS,
    RECOMMENDED,
    Name,
    StrictModel,
    TokenId,
    TokenKey,
    given_sampling,
    refuse,
)
from loire.server.web.unions import AS_LIST, AS_TEXT, TEXT_OR_LIST, up_to

ACCOUNTING = frozenset(
    (
        "user",
        "metadata",
        "client_metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "cache_control",
        "betas",
    )
)
"""Who asks, what for, and what to remember: there is one tier, nothing is kept of an answer but a
stored response, and equal prefixes are found by themselves."""

MAX_STOP_TOKENS = 1024
MAX_BIASES = 1024
MAX_ALLOWED = 2**20
MAX_BAD_WORDS = 256
"""Each is looked for at every step."""


StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
StopStrings = Annotated[
    Annotated[StopString, AS_TEXT] | Annotated[list[StopString], up_to(MAX_STOPS), AS_LIST],
    TEXT_OR_LIST,
]


class StreamOptions(StrictModel):
    """How to stream."""

    HINTS: ClassVar[frozenset[str]] = frozenset(("include_obfuscation",))

    include_usage: bool = Field(False, description="send the usage in a last chunk of its own")
    continuous_usage_stats: bool = Field(
        False, description="with include_usage: the usage so far in every chunk (vLLM's)"
    )


class GenerationRequest(StructuredFields):
    """Fields that chat and plain completions share; the last group is vLLM's."""

    HINTS: ClassVar[frozenset[str]] = ACCOUNTING
    # Of vLLM's API, where it does what happens here anyway.
    NEUTRAL: ClassVar[Mapping[str, object]] = {
        "length_penalty": 1.0,
        "spaces_between_special_tokens": True,
        "include_reasoning": True,
        "add_special_tokens": True,
        "num_beams": 1,
    }

    model: Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
    n: int = Field(1, ge=1, le=128)
    temperature: float | None = Field(None, ge=0, le=2, description=RECOMMENDED)
    top_p: float | None = Field(None, ge=0, le=1, description="0 keeps the likeliest token alone")
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[TokenKey, Annotated[float, Field(ge=-100, le=100)]] = Field(
        default_factory=dict, max_length=MAX_BIASES
    )
    seed: int | None = Field(None, ge=-(2**63), le=2**64 - 1)
    stop: StopStrings = Field(default_factory=list)
    stream: bool = False
    stream_options: StreamOptions | None = None

    top_k: int | None = Field(None, ge=-1, le=MAX_INT, description="0 or -1 keeps all")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    min_tokens: int = Field(0, ge=0, le=MAX_INT)
    ignore_eos: bool = False
    stop_token_ids: Annotated[list[TokenId], up_to(MAX_STOP_TOKENS)] = Field(default_factory=list)
    allowed_token_ids: Annotated[list[TokenId], up_to(MAX_ALLOWED)] = Field(
        default_factory=list, description="the only tokens that may come; an end token is one"
    )
    bad_words: Annotated[list[StopString], up_to(MAX_BAD_WORDS)] = Field(
        default_factory=list, description="what must not be written"
    )
    truncate_prompt_tokens: int | None = Field(
        None, ge=-1, le=MAX_INT, description="keep the prompt's end; -1: as much as there is room"
    )
    prompt_logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="of the prompt's tokens; not in streams"
    )
    return_token_ids: bool = Field(False, description="of prompt and answer, beside the text")
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    cache_salt: Name = Field("", description="only requests of equal salt share cached prefixes")
    priority: int = Field(
        0, ge=-MAX_INT, le=MAX_INT, description="lower is earlier; above 0 it is background work"
    )

    @model_validator(mode="after")
    def _check_stream_options(self) -> "GenerationRequest":
        options = self.stream_options
        if options is not None and options.include_usage and not self.stream:
            refuse("'stream_options' needs 'stream': true", "stream_options")
        if self.prompt_logprobs is not None and self.stream:
            refuse("'prompt_logprobs' does not go with 'stream': true", "prompt_logprobs")
        return self

    def shared_sampling_params(
        self,
        *,
        max_tokens: int | None,
        logprobs: int | None,
        echoed_logprobs: int | None = None,
        structured_outputs: StructuredOutputs | None = None,
    ) -> SamplingParams:
        """SamplingParams from the shared fields. Raises RequestError, naming the field.

        echoed_logprobs: how many are asked for of each of the prompt's tokens by another field.
        """
        of_prompt = {self.prompt_logprobs, echoed_logprobs} - {None}
        return SamplingParams(
            n=self.n,
            **given_sampling(
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                min_p=self.min_p,
                repetition_penalty=self.repetition_penalty,
            ),
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            logit_bias=self.logit_bias,
            seed=self.seed,
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            include_stop_str_in_output=self.include_stop_str_in_output,
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
            prompt_logprobs=max(filter(None, of_prompt), default=0) if of_prompt else None,
            allowed_token_ids=self.allowed_token_ids or None,
            bad_words=self.bad_words,
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            skip_special_tokens=self.skip_special_tokens,
            structured_outputs=structured_outputs,
        )


def is_none(value: object) -> bool:
    """Whether a field is left out of an answer."""
    return value is None


class PromptLogprob(BaseModel):
    """A token of the prompt, or one that could have stood there. rank: 1 is the likeliest."""

    logprob: float
    rank: int
    decoded_token: str


PromptPosition = dict[int, PromptLogprob] | None
"""By token ids; null for the first position, which nothing predicts."""


class PromptTokensDetails(BaseModel):
    """Where the prompt's tokens came from."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens that a request took, over all its prompts and choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
