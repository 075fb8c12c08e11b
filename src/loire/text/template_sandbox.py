"""The sandbox of chat templates: no way to Python's objects, and none to grow without measure.

Jinja's immutable sandbox keeps attributes and changes away; its ranges are bounded. Here every
other way of making something large out of something small is bounded as well.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import TemplateError
from jinja2.compiler import CodeGenerator, Frame
from jinja2.nodes import Concat
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_SIZE = 5_000_000
"""Characters of a text, or elements of a list, that a template may make."""
MAX_NUMBER = 1000
"""Largest number that a filter or a method of a text takes, such as a width."""

_WIDE_FORM = re.compile(r"\{[^{}]*(\d{4}|\{)")
_GROWING_METHODS = frozenset(
    {"center", "ljust", "rjust", "zfill", "expandtabs", "replace", "join", "translate", "encode"}
)
_GROWING_FILTERS = ("batch", "indent", "join", "replace", "slice", "truncate", "wordwrap")
_REMOVED_FILTERS = ("center", "format", "pprint", "urlize", "xmlattr")


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """An environment whose templates make nothing larger than MAX_SIZE."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.code_generator_class = _BoundedCode
        for name in _REMOVED_FILTERS:
            del self.filters[name]
        for name in _GROWING_FILTERS:
            self.filters[name] = _bounded(self.filters[name])
        self.globals.pop("lipsum")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Bound the size of what `+`, `*`, `**` and `%` make."""
        if operator == "+":
            _check_size(_size(left) + _size(right))
        if operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(times, int):
                    _check_size(_size(sequence) * times)
        if operator == "**" and (abs(left) > 10**6 or abs(right) > 64):
            raise TemplateError(f"it computes {left} ** {right}")
        if operator == "%" and isinstance(left, str):
            raise TemplateError("it formats strings with %, which is not allowed")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: Any, *args: Any, **named: Any) -> Any:
        """Bound what methods of texts make."""
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str) and function.__name__ in _GROWING_METHODS:
            _check_growth(function.__name__, owner, args, named)
        return super().call(context, function, *args, **named)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Jinja's own str.format, for forms without large or computed widths."""
        form = getattr(value, "__self__", None)
        if isinstance(form, str) and _WIDE_FORM.search(form):
            raise TemplateError("it formats a string with a width that is large or computed")
        return super().wrap_str_format(value)

    def joined(self, parts: Sequence[Any]) -> str:
        """The operator `~`."""
        texts = [str(part) for part in parts]
        _check_size(sum(len(text) for text in texts))
        return "".join(texts)


class _BoundedCode(CodeGenerator):
    """Has `~` go through the sandbox; Jinja would join without asking it."""

    def visit_Concat(self, node: Concat, frame: Frame) -> None:  # noqa: N802  Jinja's name
        """Write environment.joined((a, b, ...))."""
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose result is bounded by its arguments before it is made."""
    passes = getattr(function, "jinja_pass_arg", None)

    def call(*args: Any, **named: Any) -> Any:
        own = args[1:] if passes is not None else args
        _check_growth(function.__name__, own[0], own[1:], named)
        return function(*args, **named)

    if passes is not None:
        call.jinja_pass_arg = passes  # type: ignore[attr-defined]
    return call


def _check_growth(name: str, value: Any, args: Sequence[Any], named: dict[str, Any]) -> None:
    given = [*args, *named.values()]
    for number in given:
        if isinstance(number, int) and abs(number) > MAX_NUMBER:
            raise TemplateError(f"it calls {name} with the number {number:,}")
    if "replace" in name and len(args) >= 2 and isinstance(value, str):
        old, new = str(args[0]), str(args[1])
        _check_size(len(value) + (value.count(old) if old else len(value) + 1) * len(new))
    elif "join" in name and given and not isinstance(value, str):
        _check_size(_size(list(value)) * (1 + _size(given[0])))
    elif "join" in name and isinstance(value, str) and given:
        _check_size(len(value) * _size(given[0]))
    elif isinstance(value, str):
        lines = value.count("\n") + value.count("\t") + 1
        numbers = [abs(number) for number in given if isinstance(number, int)]
        _check_size(len(value) + lines * max(numbers, default=0))


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0


def _check_size(size: int) -> None:
    if size > MAX_SIZE:
        raise TemplateError(f"it makes something of size {size:,}, more than {MAX_SIZE:,}")
