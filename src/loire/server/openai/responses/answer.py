"""Bodies that /v1/responses answers with."""

from typing import Any, Literal

from pydantic import BaseModel, Field

Status = Literal["in_progress", "completed", "incomplete"]


class InputDetails(BaseModel):
    """Where the input's tokens came from."""

    cached_tokens: int


class OutputDetails(BaseModel):
    """Thoughts are not counted apart."""

    reasoning_tokens: int = 0


class ResponsesUsage(BaseModel):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails = Field(default_factory=OutputDetails)
    total_tokens: int


class IncompleteDetails(BaseModel):
    """Why an answer is not complete."""

    reason: Literal["max_output_tokens"]


class ResponseBody(BaseModel):
    """A response. output: items of type message, function_call and reasoning."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    error: None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: bool
    previous_response_id: str | None
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float
    truncation: Literal["disabled", "auto"]
    reasoning: dict[str, Any]
    background: Literal[False] = False
    usage: ResponsesUsage | None = None
    metadata: dict[str, str]


class InputItems(BaseModel):
    """What was sent for a response."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    """A response that was forgotten."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True
