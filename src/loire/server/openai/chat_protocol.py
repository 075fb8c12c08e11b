"""Bodies of /v1/chat/completions."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Discriminator, Field, PrivateAttr, Tag, model_validator

from loire.base.sampling import MAX_LOGPROBS, SamplingParams
from loire.server.openai.protocol import GenerationRequest, Usage
from loire.server.openai.structured_protocol import ResponseFormat
from loire.server.openai.tools_protocol import (
    FunctionTool,
    PastCall,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    tool_use,
)
from loire.server.serving.conversation import AnswerFinish, Conversation
from loire.server.web.errors import UNION_TAG
from loire.server.web.strict import (
    MAX_INT,
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_TOOLS,
    Name,
    StrictModel,
    Text,
    refuse,
)
from loire.text.tools.definitions import ToolUse

MAX_PAST_CALLS = 128
"""Calls in one message."""
MAX_VARIABLES = 32
MAX_METADATA = 16
"""Entries of metadata, as in OpenAI's API."""

_NO_AUDIO = "this server answers with text; leave it out"


class TextPart(StrictModel):
    """A piece of a message."""

    type: Literal["text"]
    text: Text

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_media(cls, data: Any) -> Any:
        kind = data.get("type") if isinstance(data, dict) else None
        if isinstance(kind, str) and kind != "text":
            refuse(
                f"a content part of type {kind!r} is not supported: this server reads text only",
                "type",
                kind="unsupported",
            )
        return data


def _text_or_parts(value: Any) -> str:
    return f"{UNION_TAG}parts" if isinstance(value, list) else f"{UNION_TAG}text"


Content = Annotated[
    Annotated[Text, Tag(f"{UNION_TAG}text")]
    | Annotated[list[TextPart], Field(max_length=MAX_PARTS), Tag(f"{UNION_TAG}parts")],
    Discriminator(_text_or_parts),
]


class ChatMessage(StrictModel):
    """A message of the conversation. What becomes of its name is up to the template.

    The role "developer" is OpenAI's later name of "system" and is given to the template as that.
    """

    UNSUPPORTED: ClassVar[Mapping[str, str]] = {
        "function_call": "it is the older form of tool calls: send 'tool_calls'",
        "audio": _NO_AUDIO,
        "refusal": "send it as the content",
        "annotations": "leave it out",
    }

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = Field(None, description="required, but beside tool_calls")
    name: Name = ""
    tool_calls: list[PastCall] = Field(
        default_factory=list, max_length=MAX_PAST_CALLS, description="what the assistant called"
    )
    tool_call_id: Name = Field("", description='which call a message of role "tool" answers')
    reasoning_content: Text = Field("", description="what the assistant thought")

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_extras(cls, data: Any) -> Any:
        """Answers of this API can be sent back as they are: their empty extras say nothing."""
        if not isinstance(data, dict):
            return data
        empty_extras = {
            name for name in ("annotations", "tool_calls") if name in data and data[name] == []
        }
        return {name: value for name, value in data.items() if name not in empty_extras}

    @model_validator(mode="after")
    def _check_role(self) -> "ChatMessage":
        if self.content is None and not self.tool_calls:
            refuse("'content' is required", "content")
        for field in ("tool_calls", "reasoning_content"):
            if getattr(self, field) and self.role != "assistant":
                refuse(f"{field!r} is for messages of role 'assistant', not {self.role!r}", field)
        if self.role == "tool" and not self.tool_call_id:
            refuse("'tool_call_id' is required in a message of role 'tool'", "tool_call_id")
        return self

    def for_template(self) -> dict[str, object]:
        """The message as chat templates expect it."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        message: dict[str, object] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": text,
        }
        for key in ("name", "tool_call_id", "reasoning_content"):
            if value := getattr(self, key):
                message[key] = value
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        return message


class ChatCompletionRequest(GenerationRequest):
    """A request for the next message of a conversation."""

    UNSUPPORTED: ClassVar[Mapping[str, str]] = {
        "functions": "it is the older form of tools: send 'tools'",
        "function_call": "it is the older form of tool_choice: send 'tool_choice'",
        "documents": "the prompt has no place of its own for them: put them into a message",
        "audio": _NO_AUDIO,
        "prediction": "predicted outputs are not implemented; leave it out",
        "reasoning_effort": "the models served here have no such setting; leave it out",
        "verbosity": "the models served here have no such setting; leave it out",
        "web_search_options": "this server does not search; leave it out",
        "moderation": "this server does not moderate; leave it out",
        "prompt_cache_options": "equal prefixes are found by themselves; leave it out",
        "prompt_cache_retention": "cached prefixes stay as long as there is room; leave it out",
        "add_generation_prompt": "it is always added; leave it out",
    }

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(
        None, ge=1, le=MAX_INT, description="the older name of max_completion_tokens"
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, le=MAX_INT, description="as many as fit, if absent"
    )
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: list[FunctionTool] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = Field(True, description="false: at most one call per answer")
    chat_template_kwargs: dict[Name, Any] = Field(
        default_factory=dict,
        max_length=MAX_VARIABLES,
        description="variables that the model's chat template reads, such as enable_thinking",
    )
    modalities: list[Literal["text"]] = Field(default=["text"], max_length=1)
    metadata: dict[Name, Name] = Field(
        default_factory=dict, max_length=MAX_METADATA, description="accepted without effect"
    )
    store: bool = Field(False, description="accepted without effect: nothing is stored")
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] = Field(
        "auto", description="accepted without effect: there is one tier"
    )
    safety_identifier: Name = Field("", description="accepted without effect")
    prompt_cache_key: Name = Field(
        "", description="accepted without effect: equal prefixes are found by themselves"
    )

    _tool_use: ToolUse | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _check_pairs(self) -> "ChatCompletionRequest":
        if self.top_logprobs and not self.logprobs:
            refuse("'top_logprobs' needs 'logprobs': true", "top_logprobs")
        given = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(given) > 1:
            refuse(
                f"'max_tokens' ({self.max_tokens}) and 'max_completion_tokens' "
                f"({self.max_completion_tokens}) name the same limit: send one of them",
                "max_tokens",
            )
        self._tool_use = tool_use(self.tools, self.tool_choice, parallel=self.parallel_tool_calls)
        return self

    def conversation(self) -> Conversation:
        """What the model shall answer."""
        return Conversation(
            messages=[message.for_template() for message in self.messages],
            tools=self._tool_use,
            variables=self.chat_template_kwargs,
        )

    def sampling_params(self) -> SamplingParams:
        """How to choose tokens. Raises RequestError, naming the field."""
        return self.shared_sampling_params(
            max_tokens=self.max_completion_tokens or self.max_tokens,
            logprobs=self.top_logprobs if self.logprobs else None,
            structured_outputs=self.structured(self.response_format),
        )


class TopLogprob(BaseModel):
    """A token that could have stood there."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """The token that stands there; bytes are UTF-8, of which a token may hold a part only."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of the tokens of a message."""

    content: list[TokenLogprob]
    refusal: None = None


def is_none(value: object) -> bool:
    """Whether a field is left out of an answer."""
    return value is None


class AnswerMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str | None = Field(description="null if there is nothing but calls")
    reasoning_content: str | None = Field(None, exclude_if=is_none)
    """What the model thought before, if it is one that thinks."""
    tool_calls: list[ToolCall] | None = Field(None, exclude_if=is_none)
    refusal: None = None


class ChatChoice(BaseModel):
    """One of the n answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: AnswerFinish


class ChatCompletion(BaseModel):
    """The answer to a request that does not stream."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str


class ChatDelta(BaseModel):
    """What is new of a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(BaseModel):
    """What is new of one of the n answers."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: AnswerFinish | None


class ChatCompletionChunk(BaseModel):
    """An event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    system_fingerprint: str
