"""POST /v1/embeddings: texts as vectors, the pooled hidden states of the served model."""

import base64
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, model_validator

from loire.base.errors import RequestError
from loire.base.sampling import Pooling, SamplingParams
from loire.engine.requests import Submission
from loire.server.openai.answers import whole_answer
from loire.server.openai.completions_protocol import MAX_PROMPTS, Prompts, as_prompts
from loire.server.openai.protocol import ACCOUNTING
from loire.server.serving.client import CallClient, admit
from loire.server.serving.generation import Choice, Generation
from loire.server.web.connection import while_connected
from loire.server.web.descriptions import ERROR_RESPONSES
from loire.server.web.json_body import JsonRoute
from loire.server.web.strict import MAX_INT, MAX_NAME, Name, StrictModel, refuse

router = APIRouter(route_class=JsonRoute)


class EmbeddingsRequest(StrictModel):
    """Texts, or token ids, to be turned into vectors."""

    # Texts are taken as they are: models that want another beginning for questions get it there.
    HINTS: ClassVar[frozenset[str]] = ACCOUNTING | {"input_type"}
    NEUTRAL: ClassVar[Mapping[str, object]] = {
        "add_special_tokens": True,
        "truncate": "NONE",
        "normalize": True,
    }

    model: Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
    input: Prompts
    dimensions: int | None = Field(
        None, ge=1, le=MAX_INT, description="the first so many numbers, scaled to length 1 again"
    )
    encoding_format: Literal["float", "base64"] = "float"
    pooling: Pooling = Field("mean", description="of the hidden states of a text's tokens")
    truncate_prompt_tokens: int | None = Field(
        None, ge=-1, le=MAX_INT, description="keep each text's end; -1: as much as there is room"
    )
    priority: int = Field(0, ge=-MAX_INT, le=MAX_INT)
    cache_salt: Name = Field("", description="accepted without effect: no cache is read")

    @model_validator(mode="after")
    def _check_count(self) -> "EmbeddingsRequest":
        if len(as_prompts(self.input)) > MAX_PROMPTS:
            refuse(f"at most {MAX_PROMPTS} texts are taken at once", "input")
        return self


class Embedding(BaseModel):
    """A vector of length 1; as base64, its float32 numbers, little-endian."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(BaseModel):
    """Tokens of all texts."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    """The vectors, in the order of the texts."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage


@router.post("/v1/embeddings", response_model=Embeddings, responses=ERROR_RESPONSES)
async def create_embeddings(body: EmbeddingsRequest, request: Request) -> Response:
    """Texts as vectors."""
    client = admit(request, body.model)
    submissions = await client.prepare(request, lambda: _submit(client, body))
    generation = Generation(client, submissions)
    await while_connected(request.receive, generation.run())
    return await whole_answer(generation, lambda: _embeddings(body, generation))


def _embeddings(body: EmbeddingsRequest, generation: Generation) -> dict[str, Any]:
    """The answer, which may be thousands of times as large as the texts: Embeddings."""

    def embedding(choice: Choice) -> dict[str, Any]:
        vector = _encoded(_shortened(choice.pooled, body.dimensions), body.encoding_format)
        return {"object": "embedding", "index": choice.index, "embedding": vector}

    num_tokens = generation.num_prompt_tokens
    return {
        "object": "list",
        "data": map(embedding, generation.choices),
        "model": body.model,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }


def _submit(client: CallClient, body: EmbeddingsRequest) -> list[Submission]:
    params = SamplingParams(
        max_tokens=1, pooling=body.pooling, truncate_prompt_tokens=body.truncate_prompt_tokens
    )
    origin = client.origin(priority=body.priority)
    submissions = []
    for number, prompt in enumerate(as_prompts(body.input)):
        try:
            submissions.append(
                client.frontend.prompt(client.next_id(), prompt, params, origin=origin)
            )
        except RequestError as error:
            error.param = f"input[{number}]"
            raise
    return submissions


def _shortened(vector: Sequence[float] | None, dimensions: int | None) -> list[float]:
    assert vector is not None, "a request that pools ends with a vector or an error"
    if dimensions is None:
        return list(vector)
    if dimensions > len(vector):
        raise RequestError(
            f"'dimensions' is {dimensions}, but this model's vectors have {len(vector)} numbers",
            param="dimensions",
        )
    kept = vector[:dimensions]
    length = math.sqrt(sum(value * value for value in kept)) or 1.0
    return [value / length for value in kept]


def _encoded(vector: list[float], encoding_format: str) -> list[float] | str:
    if encoding_format == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
