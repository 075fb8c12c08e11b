"""Bodies that are sent to /v1/responses.

https://platform.openai.com/docs/api-reference/responses
"""

from collections.abc import Mapping, Sequence, Set
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from loire.base.sampling import SamplingParams
from loire.base.structured_outputs import StructuredOutputs
from loire.server.openai.protocol import ACCOUNTING
from loire.server.openai.responses.items import Input, Item, MessageItem, refuse_other_items
from loire.server.openai.responses.tools import (
    CustomToolParam,
    ResponseTool,
    ToolChoice,
    as_chat_choice,
    flat_tools,
)
from loire.server.openai.tools_protocol import tool_use
from loire.server.web.ignored import note_ignored
from loire.server.web.strict import (
    MAX_INT,
    MAX_NAME,
    RECOMMENDED,
    Name,
    StrictModel,
    Text,
    given_sampling,
    refuse,
)
from loire.server.web.unions import Parts, Tools
from loire.text.effort import Effort
from loire.text.tools.definitions import ToolUse

MAX_METADATA = 16
"""Entries, as in OpenAI's API."""
_NO_BACKGROUND = "responses are made while the client waits; leave it out"


class TextFormat(StrictModel):
    """The form of the answer: any text, a JSON object, or what a schema accepts."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Name = ""
    description: Text = ""
    # "schema" is a method of pydantic's models.
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool = Field(True, description="accepted: a schema is always enforced")

    @model_validator(mode="after")
    def _check_schema(self) -> "TextFormat":
        if (self.type == "json_schema") != (self.schema_ is not None):
            needed = "needs a" if self.schema_ is None else "has no"
            refuse(f"a format of type {self.type!r} {needed} 'schema'", "schema")
        return self

    def spec(self) -> StructuredOutputs | None:
        """The constraint; None for text."""
        if self.schema_ is not None:
            return StructuredOutputs(json=self.schema_)
        return StructuredOutputs(json_object=True) if self.type == "json_object" else None


class TextOptions(StrictModel):
    """How the text shall look."""

    HINTS: ClassVar[frozenset[str]] = frozenset(("verbosity",))

    format: TextFormat = Field(default_factory=lambda: TextFormat.model_validate({}))


class Reasoning(StrictModel):
    """How much to think before the answer; how thoughts are told is not for choosing."""

    HINTS: ClassVar[frozenset[str]] = frozenset(("summary", "generate_summary", "context", "mode"))

    effort: Effort | None = None


class ResponseStreamOptions(StrictModel):
    """How to stream: events are never padded."""

    HINTS: ClassVar[frozenset[str]] = frozenset(("include_obfuscation",))


class ResponsesRequest(StrictModel):
    """A request for a response."""

    UNSUPPORTED: ClassVar[Mapping[str, str]] = {
        "background": _NO_BACKGROUND,
        "conversation": "use 'previous_response_id'",
        "image": "this server answers with text; leave it out",
        "prompt": "there are no stored prompts; send 'input'",
        "moderation": "this server does not moderate; leave it out",
        "top_logprobs": "use the chat route for log-probabilities",
    }
    HINTS: ClassVar[frozenset[str]] = (ACCOUNTING - {"metadata", "store"}) | {
        "access_programs",
        "background_options",
        "context_management",
        "max_tool_calls",
    }
    NEUTRAL: ClassVar[Mapping[str, object]] = {"top_logprobs": 0}

    model: Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
    input: Input
    instructions: Text = Field("", description="a system message, not kept for the next response")
    previous_response_id: Name = Field("", description="go on from a response that was stored")
    max_output_tokens: int | None = Field(None, ge=1, le=MAX_INT)
    temperature: float | None = Field(None, ge=0, le=2, description=RECOMMENDED)
    top_p: float | None = Field(None, ge=0, le=1, description="0 keeps the likeliest token alone")
    stream: bool = False
    store: bool = Field(True, description="whether it can be retrieved and gone on from")
    text: TextOptions = Field(default_factory=TextOptions)
    top_k: int | None = Field(None, ge=-1, le=MAX_INT, description="0 or -1 keeps all (vLLM's)")
    ignore_eos: bool = Field(False, description="go on to max_output_tokens (vLLM's)")
    tools: Tools[ResponseTool] = Field(default_factory=list)
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    reasoning: Reasoning = Field(default_factory=Reasoning)
    stream_options: ResponseStreamOptions | None = None
    truncation: Literal["disabled", "auto"] = Field(
        "disabled", description="too long a prompt is a 400 in either case"
    )
    include: Parts[Name] = Field(default_factory=list, description="nothing is left out to include")
    metadata: dict[Name, Name] = Field(default_factory=dict, max_length=MAX_METADATA)

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_items(cls, data: Any) -> Any:
        refuse_other_items(data)
        return data

    @model_validator(mode="after")
    def _check_tools(self) -> "ResponsesRequest":
        self.tool_use()
        if "message.output_text.logprobs" in self.include:
            refuse(
                "'message.output_text.logprobs' is not supported here: use the chat route for "
                "log-probabilities",
                "include",
                kind="unsupported",
            )
        if self.include:
            note_ignored("include")
        if self.truncation != "disabled":
            note_ignored("truncation")
        return self

    @property
    def custom_names(self) -> Set[str]:
        """The custom tools among those offered."""
        return {tool.name for tool in flat_tools(self.tools) if isinstance(tool, CustomToolParam)}

    def items(self) -> Sequence[Item]:
        """The input as items."""
        if isinstance(self.input, str):
            return [MessageItem(role="user", content=self.input)]
        return self.input

    def tool_use(self) -> ToolUse | None:
        """How tools shall be used. Fails a validation, naming the field."""
        return tool_use(
            flat_tools(self.tools),
            as_chat_choice(self.tool_choice),
            parallel=self.parallel_tool_calls,
        )

    def sampling_params(self) -> SamplingParams:
        """How to choose tokens. Raises RequestError, naming the field."""
        return SamplingParams(
            max_tokens=self.max_output_tokens,
            **given_sampling(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k),
            ignore_eos=self.ignore_eos,
            structured_outputs=self.text.format.spec(),
        )
