"""A conversation with tools, whatever API it came through, and its answer in parts.

For a route (chat completions, responses, Anthropic's messages):

    conversation = Conversation(messages=..., tools=ToolUse(...) or None, variables=...)
    started = submit(client, conversation, params)       # RequestError: a 400; off the event loop
    generation = Generation(client, [started.submission])
    readers = [started.reader() for _ in generation.choices]

and then, for each choice that has news (generation.news(), or once after generation.run()):

    events = readers[choice.index].read(text, choice.finish_reason)     # text from choice.take()

The events are those of loire.text.tools.events, in order; `collect` joins them for answers that do
not stream. Messages have the keys that chat templates expect: role (system, user, assistant,
tool), content (text), tool_calls (with arguments as JSON text), tool_call_id, reasoning_content.
"""

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from loire.base.errors import RequestError
from loire.base.sampling import SamplingParams
from loire.base.structured_outputs import StructuredOutputs
from loire.engine.frontend import Frontend
from loire.engine.requests import Submission
from loire.server.serving.generation import FinishReason
from loire.server.serving.request_client import RequestClient
from loire.text.answer_parser import AnswerParser
from loire.text.dialect import Dialect
from loire.text.effort import FLAGS, Effort, effort_variables
from loire.text.reasoning import ReasoningSplitter
from loire.text.reasoning_grammar import Thinking, Thoughts
from loire.text.tools.definitions import ToolUse
from loire.text.tools.events import (
    AnswerEvent,
    ArgumentsDelta,
    CallBroken,
    CallEnded,
    CallStarted,
    ContentDelta,
    ReasoningDelta,
)
from loire.text.tools.grammar import CallGrammar
from loire.text.tools.parser import ToolParser

AnswerFinish = Literal["stop", "length", "tool_calls"]

RESERVED_VARIABLES = frozenset(
    ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")
)
"""What a template is given by the request's own fields, or never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What the model shall answer. variables: what else its template reads (enable_thinking).

    effort: how much to think first; None leaves it to the model.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: ToolUse | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    effort: Effort | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """A conversation that was accepted. is_json: an answer without calls must be JSON.

    ignored: what of it has no effect with this model: effort, or flags of its template.
    """

    submission: Submission
    tools: ToolUse | None
    dialect: Dialect
    thinking: Thinking
    is_json: bool
    ignored: Sequence[str] = ()

    def reader(self) -> "AnswerReader":
        """Reads one of the answers."""
        splitter = parser = None
        if self.dialect.reasoning is not None and self.thinking != "none":
            inside = self.thinking == "inside"
            splitter = ReasoningSplitter(self.dialect.reasoning, inside=inside)
        if self.tools is not None:
            names = {tool.name for tool in self.tools.callable_tools}
            parser = ToolParser(self.dialect.tool_format, names, max_calls=self.tools.max_calls)
        must_call = self.tools is not None and self.tools.mode == "required"
        return AnswerReader(AnswerParser(splitter, parser), must_call, self.is_json)


class AnswerReader:
    """Turns the text of one answer into events.

    must_call, is_json: what the answer has to be. One that a stop string ended before it was that
    is told as one that was too long.
    """

    def __init__(self, parser: AnswerParser, must_call: bool, is_json: bool) -> None:
        self._parser = parser
        self._must_call = must_call
        self._is_json = is_json
        self._content = ""
        """Of an answer that has to be JSON."""
        self._cut = False

    def read(self, text: str, finish_reason: FinishReason | None) -> list[AnswerEvent]:
        """What is certain after more text, and, with a finish reason, after all of it."""
        events = self._parser.push(text)
        if finish_reason is not None:
            self._cut = self._must_call and (self._parser.in_call or not self._parser.num_calls)
            events += self._parser.finish(truncated=finish_reason == "length" or self._cut)
        if self._is_json:
            texts = (event.text for event in events if isinstance(event, ContentDelta))
            self._content += "".join(texts)
            if finish_reason is not None and not self._parser.num_calls:
                self._cut = not _is_json(self._content)
        return events

    def finish_reason(self, finish_reason: FinishReason) -> AnswerFinish:
        """How the answer ended, once everything was read."""
        if finish_reason == "length" or self._cut:
            return "length"
        return "tool_calls" if self._parser.num_calls else "stop"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


@dataclass(slots=True)
class Call:
    """A call of a tool. arguments: a JSON object as text; cut off if the answer was too long."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Answer:
    """A whole answer."""

    reasoning: str = ""
    content: str = ""
    calls: list[Call] = field(default_factory=list)


def collect(events: Iterable[AnswerEvent]) -> Answer:
    """An answer from its events."""
    answer = Answer()
    calls: dict[int, Call] = {}
    for event in events:
        match event:
            case ReasoningDelta(text):
                answer.reasoning += text
            case ContentDelta(text):
                answer.content += text
            case CallStarted(index, call_id, name):
                calls[index] = Call(call_id, name)
            case ArgumentsDelta(index, text):
                calls[index].arguments += text
            case CallBroken(index):
                del calls[index]
            case CallEnded():
                pass
    answer.calls += calls.values()
    return answer


def submit(
    client: RequestClient,
    conversation: Conversation,
    params: SamplingParams,
    *,
    cache_salt: str = "",
    priority: int = 0,
) -> Started:
    """Accept a conversation: render and tokenize it, and enforce the form of calls if asked to.

    Takes a while for long conversations: not for the event loop. Raises RequestError.
    """
    frontend, use = client.frontend, conversation.tools
    dialect = frontend.dialect
    variables, ignored = _variables(frontend, conversation)
    prompt = _render(frontend, conversation, variables)
    thinking = _thinking(dialect, prompt)
    thoughts = Thoughts(dialect.reasoning, thinking, lambda text: _special_id(frontend, text))
    form = params.structured_outputs
    params = _constrained(frontend, thoughts, use, params)
    enforced = use is not None and use.enforced
    try:
        submission = frontend.rendered(
            client.next_id(),
            prompt,
            params,
            cache_salt=cache_salt,
            priority=priority,
            shown_ids=_marker_ids(frontend, dialect, with_tools=use is not None),
        )
    except RequestError as error:
        if use is not None and enforced and error.param == "structured_outputs":
            raise _about_tools(frontend, use, error) from error
        raise
    is_json = form is not None and form.is_json
    return Started(submission, use, dialect, thinking, is_json, ignored)


def prompt_of(frontend: Frontend, conversation: Conversation) -> str:
    """The prompt of a conversation, special tokens included. Raises RequestError."""
    return _render(frontend, conversation, _variables(frontend, conversation)[0])


def _render(frontend: Frontend, conversation: Conversation, variables: Mapping[str, Any]) -> str:
    tools = () if conversation.tools is None else conversation.tools.tools
    return frontend.render(conversation.messages, tools, variables)


def _about_tools(frontend: Frontend, use: ToolUse, error: RequestError) -> RequestError:
    """An error of the grammar of calls, about the tool whose parameters are at fault, or all."""
    for number, tool in enumerate(use.tools):
        if not tool.strict:
            continue  # what of it cannot be enforced was left out
        try:
            frontend.check_form(StructuredOutputs(json=tool.parameters))
        except RequestError as alone:
            reason = str(alone).removeprefix("structured_outputs.json: ")
            return RequestError(
                f"the parameters of tool {tool.name!r} cannot be enforced: {reason}; simplify "
                f"them, or leave calls free: tool_choice 'auto', and strict false",
                param=f"tools[{number}].function.parameters",
            )
    reason = str(error).removeprefix("structured_outputs.grammar: ")
    return RequestError(
        f"the calls of all tools offered ({len(use.callable_tools)}) cannot be enforced: their "
        f"grammar {reason}; offer fewer, or leave calls free: tool_choice 'auto', and strict false",
        param="tools",
    )


def _variables(
    frontend: Frontend, conversation: Conversation
) -> tuple[Mapping[str, Any], Sequence[str]]:
    """What the template is given beside the messages, and what of it is without effect.

    Clients set the flags of thinking for every model: a template that has none of them does
    without. Any other variable that it does not read is a mistake.
    """
    known = frontend.template.variables - RESERVED_VARIABLES
    given, ignored = {}, []
    for name, value in conversation.variables.items():
        if name in known:
            given[name] = value
        elif name in FLAGS:
            ignored.append(name)
        else:
            raise _unknown_variable(frontend, name, known)
    if conversation.effort is None:
        return given, ignored
    thinks = frontend.dialect.reasoning is not None
    source = frontend.template.source
    chosen = effort_variables(conversation.effort, known, source, thinks=thinks)
    if chosen is None:
        return given, [*ignored, "reasoning_effort"]
    return {**chosen, **given}, ignored


def _unknown_variable(frontend: Frontend, name: str, known: Set[str]) -> RequestError:
    reserved = name in RESERVED_VARIABLES | frontend.tokenizer.template_tokens.keys()
    reason = "is not for requests to set" if reserved else "does not occur in it"
    choices = ", ".join(sorted(known)) or "none"
    return RequestError(
        f"chat_template_kwargs gives the model's template the variable {name!r}, which "
        f"{reason}: it reads {choices}",
        param=f"chat_template_kwargs.{name}",
    )


def _thinking(dialect: Dialect, prompt: str) -> Thinking:
    """Whether the model may think first; a prompt can begin the thoughts, or end them at once."""
    marks, end = dialect.reasoning, prompt.rstrip()
    if marks is None or end.endswith(marks.closing):
        return "none"
    return "inside" if end.endswith(marks.opening) else "may"


def _constrained(
    frontend: Frontend, thoughts: Thoughts, use: ToolUse | None, params: SamplingParams
) -> SamplingParams:
    """The parameters with all that is asked of the answer's form as one constraint."""
    form = params.structured_outputs
    if form is not None and (use is not None or thoughts.possible):
        frontend.check_form(form)  # alone, so that an error is about what was sent
    if use is None:
        form = form and thoughts.before(form)
        return replace(params, structured_outputs=form)
    if form is not None and not form.is_json:
        raise RequestError(
            f"{form.kind!r} fixes the form of the whole answer, so that no tool could be called: "
            f"leave it out, or the tools",
            param="structured_outputs",
        )
    if form is None and not use.enforced:
        return params
    grammar = CallGrammar(frontend.dialect.tool_format, thoughts, form, frontend.check_form)
    return replace(params, structured_outputs=StructuredOutputs(grammar=grammar.write(use)))


def _marker_ids(frontend: Frontend, dialect: Dialect, *, with_tools: bool) -> frozenset[int]:
    """The marks that are special tokens: the parser must see them."""
    marks = dialect.reasoning
    texts: tuple[str, ...] = () if marks is None else (marks.opening, marks.closing)
    if with_tools:
        texts += dialect.tool_format.markers
    ids = (_special_id(frontend, text) for text in texts)
    return frozenset(token_id for token_id in ids if token_id is not None)


def _special_id(frontend: Frontend, text: str) -> int | None:
    token_id = frontend.tokenizer.id_of(text)
    return token_id if token_id in frontend.tokenizer.special_ids else None
