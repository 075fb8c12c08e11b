"""A conversation on its way to the engine, and how its answer is to be read.

    turn = begin_turn(frontend, request_id, conversation, params)   # RequestError; not for the loop
    ... run turn.submission ...
    reader = turn.reader()                                          # one for each of the n answers
    events = reader.read(text, finish_reason)                       # as often as there is news

The events are those of loire.text.tools.events, in order; `turn.outputs()` puts them into the
outputs of loire.base.outputs instead. Messages have the keys that chat templates expect: role
(system, user, assistant, tool), content (text), tool_calls (with arguments as JSON text),
tool_call_id, reasoning_content.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from loire.base.errors import RequestError
from loire.base.sampling import SamplingParams
from loire.base.structured_outputs import StructuredOutputs
from loire.engine.answers import AnswerReader, OutputReader
from loire.engine.frontend import Frontend
from loire.engine.requests import HERE, Origin, Submission
from loire.text.answer_parser import AnswerParser
from loire.text.dialect import Dialect
from loire.text.effort import FLAGS, Effort, effort_variables
from loire.text.reasoning import ReasoningSplitter
from loire.text.reasoning_grammar import Thinking, Thoughts
from loire.text.tools.definitions import ToolUse
from loire.text.tools.families import call_parser
from loire.text.tools.grammar import CallGrammar
from loire.text.tools.harmony import HarmonyParser
from loire.text.tools.parser import new_call_id
from loire.text.tools.prompt import Ending

WINDOWS_TO_CUT = 2
"""A conversation of which only the end is kept is rendered whole. So many windows of characters,
of the longest tokens there are, are some thirty of usual text."""
RESERVED_VARIABLES = frozenset(
    ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")
)
"""What a template is given by the request's own fields, or never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What the model shall answer. variables: what else its template reads (enable_thinking).

    effort: how much to think first; None leaves it to the model. ending: where the prompt ends;
    the answer goes on from there.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: ToolUse | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    effort: Effort | None = None
    ending: Ending = "answer begins"


@dataclass(frozen=True, slots=True)
class Turn:
    """A conversation that was accepted. is_json: an answer without calls must be JSON.

    ignored: what of it has no effect with this model: effort, or flags of its template.
    """

    submission: Submission
    tools: ToolUse | None
    dialect: Dialect
    thinking: Thinking
    is_json: bool
    ignored: Sequence[str] = ()

    def reader(self) -> AnswerReader:
        """Reads one of the answers."""
        must_call = self.tools is not None and self.tools.mode == "required"
        if self.dialect.has_channels:
            return AnswerReader(self._channels(), must_call, self.is_json)
        splitter = parser = None
        if self.dialect.reasoning is not None and self.thinking != "none":
            inside = self.thinking == "inside"
            splitter = ReasoningSplitter(self.dialect.reasoning, inside=inside)
        if self.tools is not None:
            parser = call_parser(
                self.dialect.tool_format,
                self.tools.callable_tools,
                max_calls=self.tools.max_calls,
            )
        return AnswerReader(AnswerParser(splitter, parser), must_call, self.is_json)

    def _channels(self) -> HarmonyParser:
        names = frozenset(tool.name for tool in self.tools.callable_tools) if self.tools else ()
        return HarmonyParser(
            frozenset(names),
            new_id=new_call_id,
            max_calls=None if self.tools is None else self.tools.max_calls,
            # A message that goes on is in the channel of answers.
            within="content" if self.thinking == "none" else None,
        )

    def outputs(self) -> OutputReader:
        """Reads all n answers, as outputs."""
        return OutputReader([self.reader() for _ in range(self.submission.request.params.n)])


def begin_turn(
    frontend: Frontend,
    request_id: str,
    conversation: Conversation,
    params: SamplingParams,
    *,
    origin: Origin = HERE,
) -> Turn:
    """Accept a conversation: render and tokenize it, and enforce the form of calls if asked to.

    Takes a while for long conversations: not for the event loop. Raises RequestError.
    """
    use, dialect = conversation.tools, frontend.dialect
    is_cut = params.truncate_prompt_tokens is not None
    _check_size(frontend, conversation, WINDOWS_TO_CUT if is_cut else 1)
    variables, ignored = _variables(frontend, conversation)
    prompt = _render(frontend, conversation, variables)
    if conversation.ending == "message goes on":
        thinking = _thinking_within(dialect, conversation.messages[-1])
    else:
        thinking = _thinking(dialect, prompt)
    thoughts = Thoughts(dialect.reasoning, thinking, lambda text: _special_id(frontend, text))
    form = params.structured_outputs
    params = _constrained(frontend, thoughts, use, params, origin)
    enforced = use is not None and use.enforced
    try:
        submission = frontend.rendered(
            request_id,
            prompt,
            params,
            origin=origin,
            shown_ids=_marker_ids(frontend, dialect, with_tools=use is not None),
        )
    except RequestError as error:
        if use is not None and enforced and error.param == "structured_outputs":
            raise _about_tools(frontend, use, error, origin) from error
        raise
    is_json = form is not None and form.is_json
    return Turn(submission, use, dialect, thinking, is_json, ignored)


def prompt_of(frontend: Frontend, conversation: Conversation) -> str:
    """The prompt of a conversation, special tokens included. Raises RequestError."""
    _check_size(frontend, conversation, 1)
    return _render(frontend, conversation, _variables(frontend, conversation)[0])


def _check_size(frontend: Frontend, conversation: Conversation, num_windows: int) -> None:
    """Raise PromptTooLongError for what cannot fit, before it is rendered."""
    tools = () if conversation.tools is None else conversation.tools.tools
    described = [(tool.description, tool.parameters) for tool in tools]
    given = (conversation.messages, described, conversation.variables)
    frontend.check_characters(_num_characters(given), num_windows)


def _num_characters(value: Any) -> int:
    """Of all texts in a value of JSON, but for the names of fields."""
    match value:
        case str():
            return len(value)
        case Mapping():
            return sum(map(_num_characters, value.values()))
        case Sequence():
            return sum(map(_num_characters, value))
        case _:
            return 0


def _render(frontend: Frontend, conversation: Conversation, variables: Mapping[str, Any]) -> str:
    tools = () if conversation.tools is None else conversation.tools.tools
    return frontend.render(conversation.messages, tools, variables, conversation.ending)


def _about_tools(
    frontend: Frontend, use: ToolUse, error: RequestError, origin: Origin
) -> RequestError:
    """An error of the grammar of calls, about the tool whose parameters are at fault, or all."""
    for number, tool in enumerate(use.tools):
        if not tool.strict:
            continue  # what of it cannot be enforced was left out
        try:
            frontend.check_form(StructuredOutputs(json=tool.parameters), origin)
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
    if dialect.has_channels:
        return "may"
    if marks is None or end.endswith(marks.closing):
        return "none"
    return "inside" if end.endswith(marks.opening.rstrip()) else "may"


def _thinking_within(dialect: Dialect, message: Mapping[str, Any]) -> Thinking:
    """The same for a message that goes on: its own text has thoughts that are open, or none."""
    marks, text = dialect.reasoning, str(message.get("content", ""))
    if marks is None:
        return "none"
    return "inside" if text.rfind(marks.opening) > text.rfind(marks.closing) else "none"


def _constrained(
    frontend: Frontend,
    thoughts: Thoughts,
    use: ToolUse | None,
    params: SamplingParams,
    origin: Origin,
) -> SamplingParams:
    """The parameters with all that is asked of the answer's form as one constraint."""
    form = params.structured_outputs
    if form is not None and (use is not None or thoughts.possible):
        frontend.check_form(form, origin)  # alone, so that an error is about what was sent
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
    grammar = CallGrammar(
        frontend.dialect.tool_format,
        thoughts,
        form,
        check=lambda schema: frontend.check_form(schema, origin),
    )
    return replace(params, structured_outputs=StructuredOutputs(grammar=grammar.write(use)))


def _marker_ids(frontend: Frontend, dialect: Dialect, *, with_tools: bool) -> frozenset[int]:
    """The marks that are special tokens: the parser must see them."""
    marks = dialect.reasoning
    texts: tuple[str, ...] = () if marks is None else marks.markers
    if with_tools:
        texts += dialect.tool_format.markers
    ids = (_special_id(frontend, text) for text in texts)
    return frozenset(token_id for token_id in ids if token_id is not None)


def _special_id(frontend: Frontend, text: str) -> int | None:
    token_id = frontend.tokenizer.id_of(text)
    return token_id if token_id in frontend.tokenizer.special_ids else None
