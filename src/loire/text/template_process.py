"""The process in which chat templates run: Jinja's sandbox, and limits that nothing in it can lift.

A template comes with the model's files, so it is foreign code. The sandbox keeps Python's objects
from it; the operating system bounds its time, its memory and its files, whatever it calls. Whoever
breaks the bound of time is killed by the system itself, also when nobody waits any more.

Messages both ways: a length of four bytes, then plain values as Python marshals them (requests,
from the process that started this one), or a byte that says what follows and text (answers).
"""

import contextlib
import importlib
import json
import marshal
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, BinaryIO

from jinja2 import Template, TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from loire.base.signals import leave_to_parent

LENGTH = struct.Struct(">I")
DONE, REFUSED, BROKEN = b"D", b"R", b"B"
"""An answer; what the template or its messages did wrong; what makes the template unusable."""

MAX_MEMORY_BYTES = 1 << 30
"""Of the address space. A process that holds more than KEPT_BYTES after an answer ends, so that the
memory goes back."""
KEPT_BYTES = 256 << 20
MAX_CHARACTERS = 20_000_000
"""Of what a template writes."""

_PROBE = "loire-probe-of-"
_WARM_UP = """{{ 'a\\n' | tojson(indent=1) }}{{ strftime_now('%c %p %Z') }}{{ 'a' | urlencode }}
{{ ['a'] | pprint }}{{ 'a' | wordwrap }}{{ 1.5 | round }}{{ ['a'] | random }}"""
_ERRORS = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError,
           RecursionError, OSError, ImportError, AssertionError)  # fmt: skip


class Templates:
    """The named templates of one model, compiled. special_tokens: bos_token and the like."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        environment = _environment()
        self._compiled: dict[str, Template] = {}
        self.variables: set[str] = set()
        for name, source in sources.items():
            self._compiled[name] = environment.from_string(source)
            self.variables |= meta.find_undeclared_variables(environment.parse(source))
        self.variables -= {*environment.globals, *special_tokens}
        self._special_tokens = special_tokens

    def render(self, name: str, context: Mapping[str, Any]) -> str:
        """What the template of that name writes."""
        pieces: list[str] = []
        length = 0
        for piece in self._compiled[name].generate({**self._special_tokens, **context}):
            pieces.append(piece)
            length += len(piece)
            if length > MAX_CHARACTERS:
                raise TemplateError(f"it wrote more than {MAX_CHARACTERS:,} characters")
        return "".join(pieces)

    def content_forms(self) -> dict[str, list[str]]:
        """The roles whose content may be a text, and those whose content may be a list of parts.

        Seen from what it writes: a source would not tell, as contents pass through macros.
        """
        forms: dict[str, list[str]] = {"text": [], "parts": []}
        for form, roles in forms.items():
            for tried in (("system", "user", "assistant"), ("user", "assistant"), ("user",)):
                written = self._probe(form, tried)
                if written is not None:
                    roles += [role for role in tried if _reads(written, role)]
                    break
        return forms

    def _probe(self, form: str, roles: tuple[str, ...]) -> str | None:
        """A short conversation as the template writes it; None if it refuses."""

        def content(role: str) -> Any:
            text = f"{_PROBE}{role}."
            return text if form == "text" else [{"type": "text", "text": text}]

        messages = [{"role": role, "content": content(role)} for role in roles]
        if roles[-1] != "user":
            messages.append({"role": "user", "content": content("end")})
        context = {"messages": messages, "tools": None, "add_generation_prompt": False}
        try:
            return self.render("default", context)
        except _ERRORS:
            return None


def _reads(written: str, role: str) -> bool:
    """Whether a content is there; a list that is merely printed was not understood."""
    before, found, _ = written.partition(f"{_PROBE}{role}.")
    return bool(found) and not before.endswith(("'text': '", '"text": "', '"text":"'))


class _Generation(Extension):
    """{% generation %} marks the assistant's part for training; here it only shows its body."""

    tags = {"generation"}  # noqa: RUF012  the name and type are Jinja's

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """The body, in a scope of its own as in transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(Namespace):
    """Jinja's namespace, without names that lead to Python's own."""

    def __init__(*args: Any, **named: Any) -> None:
        self, *values = args
        pairs = dict(*values, **named)
        for name in pairs:
            _check_name(name)
        Namespace.__init__(self, pairs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


class _Dict:
    """`dict` as a function, not as the class."""

    def __call__(self, *args: Any, **named: Any) -> dict[Any, Any]:
        return dict(*args, **named)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace holds no name such as {name!r}")


def _environment() -> ImmutableSandboxedEnvironment:
    """What transformers gives its templates, name by name."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON; Jinja's own filter would escape it for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators and tuple(separators),
        sort_keys=sort_keys,
    )


def _raise(message: str) -> None:
    raise TemplateError(message)


class _Server:
    """Answers requests, one after the other: open first, then any number of others."""

    def __init__(self) -> None:
        self._templates: Templates | None = None
        self._requests: dict[str, Callable[..., Any]] = {
            "open": self._open,
            "forms": self._forms,
            "render": self._render,
        }

    def answer(self, body: bytes) -> tuple[bytes, str]:
        """What kind of answer, and the answer."""
        try:
            name, *values = marshal.loads(body)  # written by the process that began us
            return DONE, self._requests[name](*values)
        except TemplateSyntaxError as error:
            return BROKEN, f"is not valid Jinja: line {error.lineno}: {error.message}"
        except MemoryError:
            return REFUSED, f"it takes more than {MAX_MEMORY_BYTES:,} bytes of memory"
        except _ERRORS as error:
            kind = BROKEN if self._templates is None else REFUSED
            return kind, str(error)[:1000] or type(error).__name__

    def _open(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> str:
        self._templates = Templates(sources, special_tokens)
        return json.dumps(sorted(self._templates.variables))

    def _forms(self) -> str:
        assert self._templates is not None
        return json.dumps(self._templates.content_forms())

    def _render(self, name: str, context: Mapping[str, Any]) -> str:
        assert self._templates is not None
        return self._templates.render(name, context)


def _limit() -> None:
    leave_to_parent(signal.SIGINT)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    # What is used for the first time may be read from a file: now, while there are files.
    for module in ("jinja2.async_utils", "jinja2.constants", "jinja2.debug"):
        importlib.import_module(module)
    Templates({"default": _WARM_UP}, {}).render("default", {})
    for limit, value in (
        (resource.RLIMIT_AS, MAX_MEMORY_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        _, most = resource.getrlimit(limit)
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(limit, (value, value))


class _Memory:
    """Tells how much memory the process holds."""

    def __init__(self) -> None:
        self._page = resource.getpagesize()
        self._file = -1
        with contextlib.suppress(OSError):
            self._file = os.open("/proc/self/statm", os.O_RDONLY)

    def held_bytes(self) -> int:
        """Now; where the system does not tell, the most that it was."""
        if self._file < 0:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return int(os.pread(self._file, 100, 0).split()[1]) * self._page


def _read(file: BinaryIO, length: int) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise SystemExit(0)  # nobody is there any more
    return data


def main(max_seconds: float) -> None:
    """Answer requests from stdin on stdout. max_seconds: of processor time, for each of them."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    server = _Server()
    memory = _Memory()
    _limit()
    while True:
        signal.setitimer(signal.ITIMER_PROF, 0)
        [length] = LENGTH.unpack(_read(requests, LENGTH.size))
        # Reading and decoding count as well: they are a part of what a request costs.
        signal.setitimer(signal.ITIMER_PROF, max_seconds)
        kind, text = server.answer(_read(requests, length))
        data = text.encode("utf-8", "surrogatepass")
        answers.write(LENGTH.pack(1 + len(data)) + kind)
        answers.write(data)
        answers.flush()
        del text, data
        if memory.held_bytes() > KEPT_BYTES:
            os._exit(0)


if __name__ == "__main__":
    main(float(sys.argv[1]))
