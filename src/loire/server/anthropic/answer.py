"""Bodies that Anthropic's /v1/messages answers with."""

from typing import Any, Literal

from pydantic import BaseModel


class MessagesUsage(BaseModel):
    """Tokens. input_tokens: those of the prompt that were not cached."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0


class AnswerBlock(BaseModel):
    """A part of an answer: text, thinking or tool_use, with the fields of its type."""

    type: Literal["text", "thinking", "tool_use"]
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None


class Message(BaseModel):
    """The model's answer."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[AnswerBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None
    usage: MessagesUsage


class TokenCount(BaseModel):
    """Tokens of a prompt."""

    input_tokens: int
