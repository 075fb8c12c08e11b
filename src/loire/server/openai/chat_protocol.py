"""Bodies of /v1/chat/completions."""

from collections.abc import Mapping, Set
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, PrivateAttr, model_validator

from loire.base.sampling import MAX_LOGPROBS, SamplingParams
from loire.engine.answers import AnswerFinish
from loire.engine.dialogue import Conversation
from loire.server.openai.protocol import (
    ACCOUNTING,
    GenerationRequest,
    PromptPosition,
    Usage,
    is_none,
)
from loire.server.openai.structured_protocol import ResponseFormat
from loire.server.openai.text_parts import Content, joined
from loire.server.openai.tools_protocol import (
    ChatTool,
    CustomTool,
    CustomToolCall,
    PastCall,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    tool_use,
)
from loire.server.web.strict import (
    MAX_INT,
    Name,
    StrictModel,
    Text,
    refuse,
)
from loire.server.web.unions import Messages, Tools, up_to
from loire.text.effort import Effort
from loire.text.tools.definitions import ToolUse
from loire.text.tools.prompt import Ending

MAX_PAST_CALLS = 128
"""Calls in one message."""
MAX_VARIABLES = 32
MAX_MODALITIES = 8

_OLD_CALL = "call_function"
"""The id of a call in the older form, which has none."""

_NO_AUDIO = "this server answers with text; leave it out"


class ChatMessage(StrictModel):
    """A message of the conversation. What becomes of its name is up to the template.

    The role "developer" is OpenAI's later name of "system" and is given to the template as that;
    the role "function" and the field function_call are the older form of calls. An answer can be
    sent back as it came, with whatever extras its provider wrote into it.
    """

    UNSUPPORTED: ClassVar[Mapping[str, str]] = {"audio": _NO_AUDIO}
    HINTS: ClassVar[frozenset[str]] = frozenset(("cache_control", "reasoning_details"))
    DROPS_UNKNOWN: ClassVar[bool] = True

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = Field(None, description="required, but of the assistant")
    name: Name = ""
    tool_calls: Annotated[list[PastCall], up_to(MAX_PAST_CALLS)] = Field(
        default_factory=list, description="what the assistant called"
    )
    tool_call_id: Name = Field("", description='which call a message of role "tool" answers')
    reasoning_content: Text = Field("", description='what the assistant thought; or "reasoning"')

    @model_validator(mode="before")
    @classmethod
    def _read_other_forms(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        call = data.pop("function_call", None)
        if isinstance(call, dict) and not data.get("tool_calls"):
            data["tool_calls"] = [{"id": _OLD_CALL, "type": "function", "function": call}]
        if data.get("role") == "function":
            data |= {"role": "tool", "tool_call_id": _OLD_CALL}
        if isinstance(data.get("reasoning"), str):
            data["reasoning_content"] = data.get("reasoning_content") or data["reasoning"]
            del data["reasoning"]
        if isinstance(data.get("refusal"), str) and not data.get("content"):
            data["content"] = data.pop("refusal")
        if data.get("role") != "assistant":
            # Neutral extras of other roles: an empty list of calls is none.
            data = {name: value for name, value in data.items() if value != []}
        return data

    @model_validator(mode="after")
    def _check_role(self) -> "ChatMessage":
        if self.content is None and self.role != "assistant":
            refuse("'content' is required", "content")
        for field in ("tool_calls", "reasoning_content"):
            if getattr(self, field) and self.role != "assistant":
                refuse(f"{field!r} is for messages of role 'assistant', not {self.role!r}", field)
        if self.role == "tool" and not self.tool_call_id:
            refuse("'tool_call_id' is required in a message of role 'tool'", "tool_call_id")
        return self

    def for_template(self) -> dict[str, object]:
        """The message as chat templates expect it."""
        message: dict[str, object] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": joined(self.content or ""),
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
        "web_search_options": "this server does not search; leave it out",
        "moderation": "this server does not moderate; leave it out",
    }
    HINTS: ClassVar[frozenset[str]] = ACCOUNTING | {"verbosity", "prediction"}

    messages: Messages[ChatMessage]
    max_tokens: int | None = Field(
        None, ge=1, le=MAX_INT, description="the older name of max_completion_tokens"
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, le=MAX_INT, description="as many as fit, if absent"
    )
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: Tools[ChatTool] = Field(default_factory=list)
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = Field(True, description="false: at most one call per answer")
    chat_template_kwargs: dict[Name, Any] = Field(
        default_factory=dict,
        max_length=MAX_VARIABLES,
        description="variables that the model's chat template reads, such as enable_thinking",
    )
    reasoning_effort: Effort | None = Field(
        None, description="how much to think first; none: not at all, where that can be chosen"
    )
    add_generation_prompt: bool | None = Field(
        None, description="false: the prompt ends after the last message (vLLM's)"
    )
    continue_final_message: bool = Field(
        False, description="the answer goes on within the last message, the assistant's (vLLM's)"
    )
    modalities: Annotated[list[Name], up_to(MAX_MODALITIES)] = Field(default=["text"])
    _tool_use: ToolUse | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _check_pairs(self) -> "ChatCompletionRequest":
        for number, modality in enumerate(self.modalities):
            if modality != "text":
                said = f"{modality!r} is not supported: this server writes text only"
                refuse(said, "modalities", number, kind="unsupported")
        if self.top_logprobs and not self.logprobs:
            refuse("'top_logprobs' needs 'logprobs': true", "top_logprobs")
        given = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(given) > 1:
            refuse(
                f"'max_tokens' ({self.max_tokens}) and 'max_completion_tokens' "
                f"({self.max_completion_tokens}) name the same limit: send one of them",
                "max_tokens",
            )
        if self.continue_final_message:
            self._check_continued()
        self._tool_use = tool_use(self.tools, self.tool_choice, parallel=self.parallel_tool_calls)
        return self

    def _check_continued(self) -> None:
        last = self.messages[-1]
        if self.add_generation_prompt:
            refuse(
                "'continue_final_message' goes on within the last message, and "
                "'add_generation_prompt' begins another: send one of them",
                "add_generation_prompt",
            )
        if last.role != "assistant" or last.tool_calls:
            refuse(
                "'continue_final_message' needs a last message of role 'assistant' without calls",
                "continue_final_message",
            )

    @property
    def custom_names(self) -> Set[str]:
        """The custom tools among those offered."""
        return {tool.custom.name for tool in self.tools if isinstance(tool, CustomTool)}

    def conversation(self) -> Conversation:
        """What the model shall answer."""
        return Conversation(
            messages=[message.for_template() for message in self.messages],
            tools=self._tool_use,
            variables=self.chat_template_kwargs,
            effort=self.reasoning_effort,
            ending=self._ending(),
        )

    def _ending(self) -> Ending:
        if self.continue_final_message:
            return "message goes on"
        return "message ends" if self.add_generation_prompt is False else "answer begins"

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


class AnswerMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str | None = Field(description="null if there is nothing but calls")
    reasoning_content: str | None = Field(None, exclude_if=is_none)
    """What the model thought before, if it is one that thinks."""
    tool_calls: list[ToolCall | CustomToolCall] | None = Field(None, exclude_if=is_none)
    refusal: None = None


class ChatChoice(BaseModel):
    """One of the n answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: AnswerFinish
    token_ids: list[int] | None = Field(None, exclude_if=is_none)


class ChatCompletion(BaseModel):
    """The answer to a request that does not stream."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    prompt_logprobs: list[PromptPosition] | None = Field(None, exclude_if=is_none)
    prompt_token_ids: list[int] | None = Field(None, exclude_if=is_none)


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
    token_ids: list[int] | None = None


class ChatCompletionChunk(BaseModel):
    """An event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    prompt_token_ids: list[int] | None = None
    system_fingerprint: str
