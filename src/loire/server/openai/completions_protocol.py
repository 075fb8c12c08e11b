"""Bodies of /v1/completions."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, Field, model_validator

from loire.base.sampling import MAX_LOGPROBS, SamplingParams
from loire.server.openai.protocol import GenerationRequest, PromptPosition, Usage, is_none
from loire.server.web.strict import MAX_INT, Text, TokenId, refuse
from loire.server.web.unions import read_as, told_by, up_to

MAX_PROMPTS = 2048
MAX_CHOICES = 2048
"""Prompts times n."""
MAX_PROMPT_TOKENS = 2**22
DEFAULT_MAX_TOKENS = 16
"""As in OpenAI's API."""


def _prompt_kind(value: Any) -> str:
    if not isinstance(value, list):
        return "text"
    first = value[0] if value else ""
    if isinstance(first, list):
        return "token lists"
    return "tokens" if isinstance(first, int) else "texts"


_TOKENS = up_to(MAX_PROMPT_TOKENS, least=1)
_PROMPTS = up_to(MAX_PROMPTS, least=1)
TokenIds = Annotated[list[TokenId], _TOKENS]
Prompts = Annotated[
    Annotated[Text, read_as("text")]
    | Annotated[list[Text], _PROMPTS, read_as("texts")]
    | Annotated[TokenIds, read_as("tokens")]
    | Annotated[list[TokenIds], _PROMPTS, read_as("token lists")],
    told_by(_prompt_kind),
]


def as_prompts(given: str | Sequence[Any]) -> list[str | list[int]]:
    """One or many prompts, each a text or token ids, as a list."""
    if isinstance(given, str) or isinstance(given[0], int):
        return [cast("str | list[int]", given)]
    return list(given)


class CompletionRequest(GenerationRequest):
    """A request to continue one or many texts. Fields as in OpenAI's legacy completions."""

    prompt: Prompts
    suffix: Text | None = Field(
        None, description="what follows the completion, for models that fill in the middle"
    )
    max_tokens: int = Field(
        DEFAULT_MAX_TOKENS, ge=0, le=MAX_INT, description="0 only with echo: nothing is added"
    )
    echo: bool = Field(False, description="put the prompt before the completion")
    logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="with echo, of the prompt's tokens too"
    )
    best_of: int | None = Field(None, ge=1, le=128, description="only the value of n")

    @model_validator(mode="after")
    def _check_pairs(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of != self.n:
            refuse(
                f"'best_of' ({self.best_of}) is not supported beyond n ({self.n}): ask for that "
                f"many with n and take the best",
                "best_of",
                kind="unsupported",
            )
        if self.suffix is not None and self.echo:
            refuse("'echo' does not go with 'suffix': the prompt is written in two parts", "echo")
        if self.suffix is not None and not all(isinstance(p, str) for p in self.prompts):
            refuse("'suffix' needs prompts that are texts, not token ids", "suffix")
        if self.max_tokens == 0 and not self.echo:
            refuse("'max_tokens' is 0, which makes sense with 'echo' only", "max_tokens")
        num_choices = len(self.prompts) * self.n
        if num_choices > MAX_CHOICES:
            refuse(
                f"{len(self.prompts)} prompts with n = {self.n} make {num_choices} completions, "
                f"but one request may have {MAX_CHOICES}: split it",
                "prompt",
            )
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, as texts or token ids."""
        return as_prompts(self.prompt)

    def sampling_params(self) -> SamplingParams:
        """How to choose tokens. Raises RequestError, naming the field."""
        return self.shared_sampling_params(
            # The engine ends a request with a token; one that nobody asked for is not shown.
            max_tokens=max(self.max_tokens, 1),
            logprobs=self.logprobs,
            echoed_logprobs=self.logprobs if self.echo else None,
            structured_outputs=self.structured(),
        )


class CompletionLogprobs(BaseModel):
    """Log-probabilities, a list entry per token.

    Tokens that are no whole UTF-8 are written "bytes:\\xNN...", as OpenAI does. text_offset counts
    characters from the beginning of the choice's text. The first token of an echoed prompt has no
    log-probability, as nothing predicts it. top_logprobs holds the chosen token too.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One completion; index counts through the prompts, n for each."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]
    prompt_logprobs: list[PromptPosition] | None = Field(None, exclude_if=is_none)
    prompt_token_ids: list[int] | None = Field(None, exclude_if=is_none)
    token_ids: list[int] | None = Field(None, exclude_if=is_none)


class Completion(BaseModel):
    """The answer to a request that does not stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    system_fingerprint: str


class CompletionChunkChoice(BaseModel):
    """What is new of one completion."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None


class CompletionChunk(BaseModel):
    """An event of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None
    system_fingerprint: str
