"""Bodies that are sent to Anthropic's /v1/messages. https://docs.anthropic.com/en/api/messages"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from loire.base.sampling import SamplingParams
from loire.base.structured_outputs import StructuredOutputs
from loire.engine.dialogue import Conversation
from loire.server.anthropic.blocks import MessageParam, TextBlock, joined
from loire.server.anthropic.tools import AnyTool, ToolChoice
from loire.server.web.client_tools import without_hosted
from loire.server.web.strict import (
    MAX_INT,
    MAX_NAME,
    MAX_STOP_LENGTH,
    MAX_STOPS,
    RECOMMENDED,
    StrictModel,
    given_sampling,
    refuse,
)
from loire.server.web.unions import Messages, TextOrParts, Tools, up_to
from loire.text.effort import Effort
from loire.text.tools.definitions import ToolUse

StopSequence = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
ModelName = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


class Thinking(StrictModel):
    """Whether to think first. How long, and whether to show it, is the model's own."""

    HINTS: ClassVar[frozenset[str]] = frozenset(("block_binding", "budget_tokens", "display"))

    type: Literal["enabled", "adaptive", "between_tools", "disabled"]


class JsonFormat(StrictModel):
    """The form of the answer: JSON that a schema accepts."""

    type: Literal["json_schema"]
    # "schema" is a method of pydantic's models.
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(StrictModel):
    """How to answer."""

    HINTS: ClassVar[frozenset[str]] = frozenset(("task_budget",))

    effort: Effort | None = None
    format: JsonFormat | None = None


class PromptFields(StrictModel):
    """What becomes the prompt."""

    UNSUPPORTED: ClassVar[Mapping[str, str]] = {
        "container": "this server runs no code; leave it out",
        "mcp_servers": "this server calls no others; leave it out",
        "fallbacks": "this server has one model; leave it out",
    }
    HINTS: ClassVar[frozenset[str]] = frozenset(
        (
            "betas",
            "billing_policy",
            "cache_control",
            "compaction",
            "context_management",
            "diagnostics",
            "fallback_credit_token",
            "inference_geo",
            "metadata",
            "service_tier",
            "speed",
            "thread",
            "user_profile_id",
            "workspace_id",
        )
    )

    model: ModelName
    messages: Messages[MessageParam]
    system: TextOrParts[TextBlock] = ""
    tools: Tools[AnyTool] = Field(default_factory=list)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig = Field(default_factory=OutputConfig)
    output_format: JsonFormat | None = Field(None, description="older: output_config.format")

    @model_validator(mode="after")
    def _check_turns(self) -> "PromptFields":
        if self._goes_on and not self.messages[-1].is_text:
            refuse(
                "the last message is the assistant's, so that the answer goes on within it: it "
                "needs a text, and no calls",
                "messages",
                len(self.messages) - 1,
                "content",
            )
        names = [tool.name for tool in without_hosted(self.tools)]
        for number, name in enumerate(names):
            if name in names[:number]:
                refuse(f"two tools have the name {name!r}", "tools", number, "name")
        choice = self.tool_choice
        if choice is not None and choice.type in ("any", "tool") and not names:
            refuse(f"'tool_choice' is {choice.type!r}, but there are no 'tools'", "tool_choice")
        if choice is not None and choice.name is not None and choice.name not in names:
            offered = ", ".join(map(repr, names))
            refuse(
                f"'tool_choice' names {choice.name!r}, but the tools offered are {offered}",
                "tool_choice",
                "name",
            )
        return self

    def conversation(self) -> Conversation:
        """What the model shall answer."""
        system = joined(self.system)
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        messages += (part for message in self.messages for part in message.for_template())
        return Conversation(
            messages=messages,
            tools=self._tool_use(),
            effort=self._effort(),
            ending="message goes on" if self._goes_on else "answer begins",
        )

    @property
    def _goes_on(self) -> bool:
        return self.messages[-1].role == "assistant"

    def _effort(self) -> Effort | None:
        if self.thinking is not None and self.thinking.type == "disabled":
            return "none"
        asked = self.output_config.effort
        return asked or (None if self.thinking is None else "high")

    def _tool_use(self) -> ToolUse | None:
        choice = self.tool_choice or ToolChoice(type="auto")
        own = without_hosted(self.tools)
        if not own or choice.type == "none":
            return None
        single = choice.disable_parallel_tool_use or choice.type == "tool"
        return ToolUse(
            tools=[tool.as_tool() for tool in own],
            mode="auto" if choice.type == "auto" else "required",
            callable_names=None if choice.name is None else frozenset({choice.name}),
            max_calls=1 if single else None,
        )


class CountRequest(PromptFields):
    """A request to count the tokens of a prompt."""


class MessagesRequest(PromptFields):
    """A request for the next message of a conversation."""

    max_tokens: int = Field(
        ge=0, le=MAX_INT, description="cut to what the window leaves; 0 only reads the prompt"
    )
    stop_sequences: Annotated[list[StopSequence], up_to(MAX_STOPS)] = Field(default_factory=list)
    stream: bool = False
    temperature: float | None = Field(None, ge=0, le=1, description=RECOMMENDED)
    top_p: float | None = Field(None, ge=0, le=1, description="0 keeps the likeliest token alone")
    top_k: int | None = Field(None, ge=0, le=MAX_INT)

    def sampling_params(self) -> SamplingParams:
        """How to choose tokens. Raises RequestError, naming the field."""
        form = self.output_config.format or self.output_format
        return SamplingParams(
            # The engine ends a request with a token; one that nobody asked for is not shown.
            max_tokens=max(self.max_tokens, 1),
            stop=self.stop_sequences,
            **given_sampling(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k),
            structured_outputs=None if form is None else StructuredOutputs(json=form.schema_),
        )
