"""POST /tokenize and /detokenize, as vLLM has them: what a prompt becomes, and back."""

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, model_validator

from loire.engine.frontend import Frontend
from loire.server.openai.chat_protocol import ChatMessage
from loire.server.openai.completions_protocol import MAX_PROMPT_TOKENS
from loire.server.serving.client import prepare
from loire.server.serving.served import Served
from loire.server.web.descriptions import ERROR_RESPONSES
from loire.server.web.json_body import JsonRoute
from loire.server.web.strict import MAX_MESSAGES, MAX_NAME, StrictModel, Text, TokenId, refuse
from loire.server.web.unions import up_to

router = APIRouter(route_class=JsonRoute, responses=ERROR_RESPONSES)

ModelName = Annotated[str, Field(max_length=MAX_NAME)]


class TokenizeRequest(StrictModel):
    """A text, or a conversation that goes through the chat template first."""

    model: ModelName = Field("", description="the served model, if absent")
    prompt: Text | None = None
    messages: Annotated[list[ChatMessage], up_to(MAX_MESSAGES)] = Field(default_factory=list)
    add_special_tokens: bool = Field(True, description="of a prompt; a template writes its own")
    return_token_strs: bool = Field(False, description="each token as text, too")

    @model_validator(mode="after")
    def _check_one(self) -> "TokenizeRequest":
        if (self.prompt is None) == (not self.messages):
            refuse("send either 'prompt' or 'messages'", "prompt")
        return self


class Tokenized(BaseModel):
    """Token ids. max_model_len: the window, prompt and output together."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(StrictModel):
    """Token ids of a text."""

    model: ModelName = Field("", description="the served model, if absent")
    tokens: Annotated[list[TokenId], up_to(MAX_PROMPT_TOKENS)]


class Detokenized(BaseModel):
    """The text. Bytes that are no UTF-8 show as U+FFFD; special tokens are kept."""

    prompt: str


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, served: Served, request: Request) -> Tokenized:
    """The token ids of a prompt."""
    frontend = served.engine_for(body.model or served.names[0]).frontend
    tokens = await prepare(request, lambda: _encode(frontend, body))
    text_of = frontend.tokenizer.token_text
    return Tokenized(
        count=len(tokens),
        max_model_len=frontend.max_model_len,
        tokens=tokens,
        token_strs=[text_of(token) for token in tokens] if body.return_token_strs else None,
    )


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, served: Served, request: Request) -> Detokenized:
    """The text of token ids."""
    frontend = served.engine_for(body.model or served.names[0]).frontend
    return Detokenized(prompt=await prepare(request, lambda: _decode(frontend, body.tokens)))


def _encode(frontend: Frontend, body: TokenizeRequest) -> list[int]:
    if body.prompt is not None:
        return frontend.tokenizer.encode(body.prompt, body.add_special_tokens)
    prompt = frontend.render([message.for_template() for message in body.messages])
    return frontend.tokenizer.encode(prompt, add_special_tokens=False)


def _decode(frontend: Frontend, tokens: list[int]) -> str:
    frontend.check_token_ids("tokens", tokens)
    return frontend.tokenizer.decode(tokens, skip_special_tokens=False)
