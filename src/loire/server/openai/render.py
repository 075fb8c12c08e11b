"""A request as token ids, not computed: vLLM's /v1/completions/render, /v1/chat/completions/render.

Routers ask for these before they choose a server. What they get is vLLM's GenerateRequest, so that
an engine which takes tokens can go on with it; here /v1/completions does, with the ids as prompt.
"""

from collections.abc import Sequence
from dataclasses import replace

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from loire.engine.requests import Submission
from loire.server.openai.answers import AnswerHead
from loire.server.openai.chat import turn_of
from loire.server.openai.chat_protocol import ChatCompletionRequest
from loire.server.openai.completions import submissions_of
from loire.server.openai.completions_protocol import CompletionRequest
from loire.server.openai.protocol import GenerationRequest, StreamOptions
from loire.server.serving.client import client_of
from loire.server.web.descriptions import ERROR_RESPONSES
from loire.server.web.ignored import note_ignored
from loire.server.web.json_body import JsonRoute

router = APIRouter(route_class=JsonRoute, responses=ERROR_RESPONSES)


class RenderedForm(BaseModel):
    """The form of the answer, in vLLM's words: one of the first five."""

    model_config = ConfigDict(from_attributes=True)

    # "json" is a method of pydantic's models.
    json_: str | None = Field(alias="json")
    json_object: bool
    regex: str | None
    choice: list[str] | None
    grammar: str | None
    disable_any_whitespace: bool


class RenderedParams(BaseModel):
    """How to choose tokens, under the names of vLLM's SamplingParams. What the request left open
    is what the model's makers recommend, and as many tokens as there is room for."""

    model_config = ConfigDict(from_attributes=True)

    n: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    seed: int | None
    max_tokens: int
    min_tokens: int
    stop: list[str]
    stop_token_ids: list[int]
    include_stop_str_in_output: bool
    ignore_eos: bool
    logprobs: int | None
    prompt_logprobs: int | None
    skip_special_tokens: bool
    bad_words: list[str]
    logit_bias: dict[int, float]
    allowed_token_ids: list[int] | None
    structured_outputs: RenderedForm | None


class RenderedRequest(BaseModel):
    """vLLM's GenerateRequest: a prompt's tokens, and what shall become of them."""

    request_id: str
    token_ids: list[int]
    sampling_params: RenderedParams
    model: str
    stream: bool
    stream_options: StreamOptions | None
    cache_salt: str | None
    priority: int


@router.post("/v1/completions/render", response_model=list[RenderedRequest])
async def render_completion(body: CompletionRequest, request: Request) -> Response:
    """The token ids of each prompt of a completion."""
    client = client_of(request, body.model)
    window = client.frontend.max_model_len

    def work() -> bytes:
        rendered = (_rendered("cmpl", body, one, window) for one in submissions_of(client, body))
        return b"[%s]" % b",".join(rendered)

    return Response(await client.prepare(request, work), media_type="application/json")


@router.post("/v1/chat/completions/render", response_model=RenderedRequest)
async def render_chat_completion(body: ChatCompletionRequest, request: Request) -> Response:
    """The token ids of a conversation."""
    client = client_of(request, body.model)

    def work() -> tuple[bytes, Sequence[str]]:
        turn = turn_of(client, body)
        window = client.frontend.max_model_len
        return _rendered("chatcmpl", body, turn.submission, window), turn.ignored

    rendered, ignored = await client.prepare(request, work)
    for name in ignored:
        note_ignored(name)
    return Response(rendered, media_type="application/json")


def _rendered(kind: str, body: GenerationRequest, submission: Submission, window: int) -> bytes:
    """As JSON, which is not for the event loop: there may be millions of ids. kind: what its id
    begins with. window: in tokens."""
    request = submission.request
    params, num_prompt = request.params, len(request.prompt_token_ids)
    if params.max_tokens is None:
        params = replace(params, max_tokens=window - num_prompt)
    rendered = RenderedRequest(
        request_id=AnswerHead(kind, body.model).id,
        token_ids=list(request.prompt_token_ids),
        sampling_params=RenderedParams.model_validate(params),
        model=body.model,
        stream=body.stream,
        stream_options=body.stream_options if body.stream else None,
        cache_salt=body.cache_salt or None,
        priority=request.priority,
    )
    return rendered.model_dump_json(by_alias=True).encode()
