"""Chat templates: the model's own Jinja source, rendered in a sandbox with limits.

A template comes with the model's files, so it is foreign code: it cannot reach Python's objects
(template_sandbox.py), and what it computes is bounded: time, length of the output, and the size of
everything it makes on the way.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from loire.base.errors import CheckpointError, RequestError
from loire.text.template_sandbox import TemplateSandbox

MAX_SECONDS = 5.0
MAX_CHARACTERS = 50_000_000
_TEMPLATE_FILE = "<template>"


class ChatTemplate:
    """A compiled template. special_tokens: bos_token and the like, by the names it uses.

    variables: names that the template reads beside the messages, such as tools or enable_thinking.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            read = meta.find_undeclared_variables(environment.parse(source))
        except TemplateSyntaxError as error:
            raise CheckpointError(
                f"the chat template is not valid Jinja: line {error.lineno}: {error.message}"
            ) from error
        own = {*environment.globals, *special_tokens, "messages", "add_generation_prompt"}
        self.variables = frozenset(read - own)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt of a conversation.

        Messages are {"role", "content", ...}; content is text, or a list of parts of which only
        text is taken. Raises RequestError with the template's own words if it refuses.
        """
        if not messages:
            raise RequestError("messages is empty: a conversation needs one", param="messages")
        plain = [_plain(index, message) for index, message in enumerate(messages)]
        context = {
            **self._special_tokens,
            **variables,
            "messages": plain,
            "tools": list(tools) if tools is not None else None,
            "add_generation_prompt": add_generation_prompt,
        }
        pieces: list[str] = []
        length = 0
        try:
            with _deadline(MAX_SECONDS):
                for piece in self._template.generate(context):
                    pieces.append(piece)
                    length += len(piece)
                    if length > MAX_CHARACTERS:
                        raise TemplateError(f"it wrote more than {MAX_CHARACTERS:,} characters")
        except (TemplateError, TypeError, ValueError, KeyError, IndexError, OverflowError,
                ZeroDivisionError, AttributeError, RecursionError) as error:  # fmt: skip
            raise RequestError(
                f"the model's chat template does not accept these messages: {error}",
                param="messages",
            ) from error
        return "".join(pieces)


def _plain(index: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose content is text (or absent, as beside tool calls)."""
    role = message.get("role")
    if not isinstance(role, str):
        raise RequestError(f"messages[{index}] has no role", param=f"messages[{index}].role")
    content = message.get("content")
    if content is None or isinstance(content, str):
        return dict(message)
    param = f"messages[{index}].content"
    if not isinstance(content, Sequence):
        raise RequestError(f"{param} must be text or a list of text parts", param=param)
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise RequestError(
                f"{param} has a part of type {kind!r}, but this model reads text only", param=param
            )
        texts.append(part["text"])
    return {**message, "content": "".join(texts)}


class _Generation(Extension):
    """{% generation %} marks the assistant's part for training; here it only shows its body."""

    tags = {"generation"}  # noqa: RUF012  the name and type are Jinja's

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """The body, unchanged."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> TemplateSandbox:
    environment = TemplateSandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
    """Plain JSON; Jinja's own filter would escape it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)


def _raise(message: str) -> None:
    raise TemplateError(message)


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Stop the template's own code, line by line, when its time is up."""
    end = time.monotonic() + seconds
    before = sys.gettrace()

    def trace(frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        if frame.f_code.co_filename != _TEMPLATE_FILE:
            return None
        if time.monotonic() > end:
            raise TemplateError(f"it ran for more than {seconds:g} seconds")
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
