"""What a prompt becomes, and back, as vLLM has it: /tokenize, /detokenize, /tokenizer_info."""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, model_validator

from loire import __version__
from loire.base.errors import RequestError
from loire.engine.dialogue import Conversation, prompt_of
from loire.engine.frontend import Frontend
from loire.server.access.caller import get_caller
from loire.server.openai.chat_protocol import MAX_VARIABLES, ChatMessage
from loire.server.openai.completions_protocol import MAX_PROMPT_TOKENS
from loire.server.openai.tools_protocol import ChatTool, tool_use
from loire.server.serving.client import prepare
from loire.server.serving.served import Served
from loire.server.web.descriptions import ERROR_RESPONSES
from loire.server.web.json_body import JsonRoute
from loire.server.web.strict import MAX_MESSAGES, MAX_NAME, Name, StrictModel, Text, TokenId, refuse
from loire.server.web.unions import Tools, up_to
from loire.text.tools.prompt import Ending

router = APIRouter(route_class=JsonRoute, responses=ERROR_RESPONSES)

ModelName = Annotated[str, Field(max_length=MAX_NAME)]


class TokenizeRequest(StrictModel):
    """A text, or a conversation that goes through the chat template first."""

    model: ModelName = Field("", description="the served model, if absent")
    prompt: Text | None = None
    messages: Annotated[list[ChatMessage], up_to(MAX_MESSAGES)] = Field(default_factory=list)
    tools: Tools[ChatTool] = Field(default_factory=list)
    chat_template_kwargs: dict[Name, Any] = Field(default_factory=dict, max_length=MAX_VARIABLES)
    add_generation_prompt: bool = Field(True, description="of a conversation: its answer begins")
    continue_final_message: bool = Field(False, description="the prompt ends within its last one")
    add_special_tokens: bool = Field(True, description="of a prompt; a template writes its own")
    return_token_strs: bool = Field(False, description="each token as text, too")

    @model_validator(mode="after")
    def _check_one(self) -> "TokenizeRequest":
        if (self.prompt is None) == (not self.messages):
            refuse("send either 'prompt' or 'messages'", "prompt")
        return self

    def conversation(self) -> Conversation:
        """The conversation, where it is one."""
        ending: Ending = "answer begins" if self.add_generation_prompt else "message ends"
        return Conversation(
            messages=[message.for_template() for message in self.messages],
            tools=tool_use(self.tools, "auto", parallel=True),
            variables=self.chat_template_kwargs,
            ending="message goes on" if self.continue_final_message else ending,
        )


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


class TokenizerInfo(BaseModel):
    """What a client must know to write prompts itself. chat_template: null if there is none."""

    tokenizer_class: str
    vocab_size: int
    model_max_length: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: str | dict[str, str] | None


class Version(BaseModel):
    """Of Loire."""

    version: str


@router.get("/tokenizer_info")
async def tokenizer_info(served: Served) -> TokenizerInfo:
    """The tokenizer of the served model, in the words of a tokenizer_config.json."""
    frontend = served.engine.frontend
    tokens = frontend.tokenizer.template_tokens
    sources = dict(frontend.template.sources) if frontend.has_chat_template else None
    alone = sources is not None and len(sources) == 1
    return TokenizerInfo(
        tokenizer_class="PreTrainedTokenizerFast",
        vocab_size=frontend.tokenizer.vocab_size,
        model_max_length=frontend.max_model_len,
        bos_token=tokens.get("bos_token"),
        eos_token=tokens.get("eos_token"),
        pad_token=tokens.get("pad_token"),
        unk_token=tokens.get("unk_token"),
        chat_template=next(iter(sources.values())) if sources and alone else sources,
    )


@router.get("/version")
async def version() -> Version:
    """Which Loire this is."""
    return Version(version=__version__)


@router.post("/tokenize", response_model=Tokenized)
async def tokenize(body: TokenizeRequest, served: Served, request: Request) -> Response:
    """The token ids of a prompt."""
    caller = get_caller(request.scope)
    frontend = served.engine_for(body.model or served.names[0], caller).frontend
    answer = await prepare(request, lambda: _tokenized(frontend, body))
    return Response(answer, media_type="application/json")


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, served: Served, request: Request) -> Detokenized:
    """The text of token ids."""
    caller = get_caller(request.scope)
    frontend = served.engine_for(body.model or served.names[0], caller).frontend
    return Detokenized(prompt=await prepare(request, lambda: _decode(frontend, body.tokens)))


def _tokenized(frontend: Frontend, body: TokenizeRequest) -> str:
    """As JSON, which is not for the event loop: there may be a million ids."""
    tokens = _encode(frontend, body)
    text_of = frontend.tokenizer.token_text
    return Tokenized(
        count=len(tokens),
        max_model_len=frontend.max_model_len,
        tokens=tokens,
        token_strs=[text_of(token) for token in tokens] if body.return_token_strs else None,
    ).model_dump_json()


def _encode(frontend: Frontend, body: TokenizeRequest) -> list[int]:
    if body.prompt is not None:
        return frontend.tokenize(body.prompt, body.add_special_tokens)
    prompt = prompt_of(frontend, body.conversation())
    return frontend.tokenize(prompt, add_special_tokens=False)


def _decode(frontend: Frontend, tokens: list[int]) -> str:
    if len(tokens) > frontend.max_model_len:
        raise RequestError(
            f"tokens holds {len(tokens):,} tokens, but the window is {frontend.max_model_len:,}: "
            f"send fewer at a time",
            param="tokens",
        )
    frontend.check_token_ids("tokens", tokens)
    return frontend.tokenizer.decode(tokens, skip_special_tokens=False)
