"""Whatever a model's template does, it ends: in text, or in an error, within time and memory."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from loire.base.errors import CheckpointError, RequestError
from loire.text import template_client
from loire.text.chat_template import ChatTemplate
from loire.text.template_process import KEPT_BYTES, MAX_CHARACTERS, MAX_MEMORY_BYTES

MESSAGES = [
    {"role": "user", "content": "Hello there"},
    {"role": "assistant", "content": "Hi.", "x": [1, 2, 3]},
]
_NS = "{% set ns = namespace(s='x' * 1000, l=[1] * 1000, d={}, n=7) %}"


def _doubled(what: str, times: int = 60) -> str:
    return (
        f"{_NS}{{% for i in range({times}) %}}{{% set ns.s = {what} %}}{{% endfor %}}{{{{ ns.s }}}}"
    )


def _for_ever(body: str) -> str:
    head = "{% set ns = namespace(n=0) %}"
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    return head + loops + body + "{% endfor %}" * 3


BIG = "('x' * 50000000)"
MANY = "([1] * 20000000)"
WORDS = "('x y ' * 5000000)"
RENDERED = {
    # No end.
    "empty loops": _for_ever(""),
    "loops that count": _for_ever("{% set ns.n = ns.n + 1 %}"),
    "loops that continue": _for_ever("{% continue %}"),
    "loops with tests": _for_ever("{% if b is odd %}{% endif %}"),
    "loops with filters": _for_ever("{% set x = messages | map(attribute='role') | list %}"),
    "loops with macros": "{% macro m() %}{% endmacro %}" + _for_ever("{% set x = m() %}"),
    "loops that call": "{% macro m() %}{{ caller() }}{% endmacro %}"
    + _for_ever("{% call m() %}{% endcall %}"),
    "loops in a generation": "{% generation %}" + _for_ever("") + "{% endgeneration %}",
    "loops that write": _for_ever("{{ 'xxxxxxxxxxxxxxxxxxxxxxxxxx' }}"),
    "loops that write nothing": _for_ever("{{ '' }}"),
    "recursive loop": "{% for a in [[]] recursive %}{{ loop([a, a]) }}{% endfor %}",
    "recursive macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "two by two": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "macros in macros": "{% macro a() %}{{ b() }}{% endmacro %}"
    "{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
    "recursive caller": "{% macro f() %}{% call f() %}{{ caller() }}{% endcall %}{% endmacro %}"
    "{{ f() }}",
    # Numbers.
    "tower": "{{ 9 ** 9 ** 9 }}",
    "power": "{{ (10 ** 50000000) % 7 }}",
    "products": f"{_NS}{{% for i in range(60) %}}{{% set ns.n = ns.n * ns.n %}}{{% endfor %}}"
    "{{ ns.n % 10 }}",
    "number as text": "{{ 7 ** 5000000 }}",
    "shifted": "{{ (2 ** 400000000) // 3 }}",
    "int of a text": "{{ ('9' * 10000000) | int }}",
    "float of a text": "{{ ('9' * 100000000) | float }}",
    "divided": "{{ (7 ** 3000000) // (3 ** 1000000) }}",
    "round": "{{ 1.5 | round(10 ** 9) }}",
    "hash of large numbers": "{{ {7 ** 20000000: 1} | length }}",
    "sum of many": f"{{{{ {MANY} | sum }}}}",
    "sum of texts": "{{ (['x' * 100000] * 100000) | sum(start='') | length }}",
    "sum of lists": "{{ ([[1] * 1000] * 100000) | sum(start=[]) | length }}",
    # Texts.
    "repetition": "{{ 'x' * 10 ** 10 }}",
    "repetition from the right": "{{ 10 ** 10 * 'x' }}",
    "repetition unused": "{% set x = 'x' * 10 ** 10 %}",
    "bytes": "{{ ('x' * 1000).encode() * 10 ** 8 }}",
    "encode": f"{{{{ {BIG}.encode('utf-32').hex() | length }}}}",
    "doubling with +": _doubled("ns.s + ns.s"),
    "doubling with ~": _doubled("ns.s ~ ns.s"),
    "doubling with format": _doubled("'%s%s' % (ns.s, ns.s)"),
    "doubling with str.format": _doubled("'{0}{0}'.format(ns.s)"),
    "doubling with the filter": _doubled("'%s%s' | format(ns.s, ns.s)"),
    "doubling with join": _doubled("[ns.s, ns.s] | join"),
    "doubling with replace": _doubled("ns.s.replace('x', 'xx')"),
    "doubling with set blocks": f"{_NS}{{% for i in range(60) %}}{{% set t %}}{{{{ ns.s }}}}"
    "{{ ns.s }}{% endset %}{% set ns.s = t %}{% endfor %}{{ ns.s }}",
    "doubling with macros": f"{_NS}{{% macro d(t) %}}{{{{ t }}}}{{{{ t }}}}{{% endmacro %}}"
    "{% for i in range(60) %}{% set ns.s = d(ns.s) %}{% endfor %}{{ ns.s }}",
    "doubling with pprint": _doubled("[ns.s, ns.s] | pprint"),
    "doubling with string": _doubled("[ns.s, ns.s] | string"),
    "doubling with tojson": _doubled("ns.s | tojson | tojson"),
    "doubling with escape": _doubled("(ns.s ~ '<') | forceescape"),
    "width": "{{ '%9999999999d' % 1 }}",
    "precision": "{{ '%.999999999f' % 1 }}",
    "star width": "{{ '%*d' % (10 ** 10, 1) }}",
    "format width": "{{ '{:>9999999999}'.format(1) }}",
    "format computed width": "{{ '{:>{}}'.format(1, 10 ** 10) }}",
    "format_map": "{{ '{x:>9999999999}'.format_map({'x': 1}) }}",
    "format filter": "{{ '%09999999999d' | format(1) }}",
    "center": "{{ 'x'.center(10 ** 10) }}",
    "center filter": "{{ 'x' | center(10 ** 10) }}",
    "ljust": "{{ 'x'.ljust(10 ** 10) }}",
    "zfill": "{{ 'x'.zfill(10 ** 12) }}",
    "tabs": "{{ ('\t' * 1000000).expandtabs(100000) }}",
    "replace": "{{ ('x' * 1000000).replace('x', 'y' * 1000000) }}",
    "replace filter": "{{ ('x' * 1000000) | replace('x', 'y' * 1000000) }}",
    "replace nothing": "{{ ('x' * 1000000).replace('', 'y' * 1000000) }}",
    "join": "{{ ('y' * 1000000).join(['x'] * 1000000) }}",
    "join filter": "{{ (['x'] * 1000000) | join('y' * 1000000) }}",
    "indent": "{{ ('\n' * 1000000) | indent(100000, true) }}",
    "indent by a text": "{{ ('\n' * 1000000) | indent('x' * 100000, true) }}",
    "translate": "{{ ('x' * 1000000).translate({120: 'y' * 1000000}) }}",
    "translate often": f"{{% for i in range(99999) %}}{{% set x = {BIG}.translate({{120: 121}}) %}}"
    "{% endfor %}",
    "upper": f"{{% for i in range(99999) %}}{{% set x = {BIG}.upper() %}}{{% endfor %}}",
    "casefold of growing letters": "{{ ('ΐ' * 100000000).upper().upper() | length }}",
    "split": f"{{{{ {WORDS}.split() | length }}}}{{{{ ('x ' * 100000000).split() | length }}}}",
    "split lines": "{{ ('\n' * 100000000).splitlines() | length }}",
    "list of a text": "{{ ('x' * 200000000) | list | length }}",
    "wordwrap": "{{ ('x ' * 10000000) | wordwrap(1) | length }}",
    "wordcount": "{{ ('x ' * 100000000) | wordcount }}",
    "truncate": "{{ ('x ' * 100000000) | truncate(99999999, false, 'y' * 100000000) | length }}",
    "title": "{{ ('x ' * 30000000) | title | length }}",
    "urlize": "{{ ('www.example.org ' * 1000000) | urlize | length }}",
    "urlencode": "{{ ('\u00e9' * 50000000) | urlencode | length }}",
    "striptags": "{{ ('<' * 100000) | striptags }}{{ ('<!--' * 1000000) | striptags }}",
    "escape": "{{ ('<' * 100000000) | escape | length }}",
    "xmlattr": "{{ {'x': '<' * 100000000} | xmlattr | length }}",
    "pprint": "{{ ([['x' * 100] * 1000] * 10000) | pprint | length }}",
    "find in a bad order": "{{ ('a' * 1000000 ~ 'b').count('a' * 500000 ~ 'c') }}"
    "{% for i in range(99999) %}{% set x = ('a' * 999999).find('a' * 499999 ~ 'b') %}{% endfor %}",
    "in": "{% for i in range(99999) %}{% set x = 'ab' in ('a' * 50000000) %}{% endfor %}",
    "compare texts": f"{{% set a = {BIG} %}}{{% set b = {BIG} %}}"
    "{% for i in range(99999) %}{% if a == b %}{% endif %}{% endfor %}",
    # Lists and dictionaries.
    "repeated list": "{{ [1] * 10 ** 10 }}",
    "list doubling": f"{_NS}{{% for i in range(60) %}}{{% set ns.l = ns.l + ns.l %}}{{% endfor %}}",
    "range": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "range as a list": "{{ range(99999) | list * 99999 }}",
    "list of lists": "{% set x = range(99999) | list %}{{ (x * 1000) | batch(2) | list | length }}",
    "slice": "{{ messages | slice(10 ** 9) | list }}",
    "batch": "{{ messages | batch(10 ** 9, 'x') | list }}",
    "sort": "{% for i in range(99999) %}{% set x = range(99999) | sort %}{% endfor %}",
    "sort of nests": "{% set x = range(99999) | list %}{{ (x * 99) | sort(reverse=true) | max }}",
    "unique": "{{ (range(99999) | list * 200) | unique | list | length }}",
    "groupby": "{{ ([{'a': 1}] * 10000000) | groupby('a') | length }}",
    "map": "{{ ([{'a': 1}] * 30000000) | map(attribute='a') | list | length }}",
    "select": "{{ (range(99999) | list * 1000) | select('odd') | list | length }}",
    "reject": "{{ (range(99999) | list * 1000) | reject('odd') | list | length }}",
    "max": "{{ (range(99999) | list * 1000) | max }}",
    "tojson": "{{ ([messages] * 3000000) | tojson | length }}",
    "tojson with an indent": "{{ ([1] * 1000000) | tojson(indent=100000) }}",
    "tojson by a text": "{{ ([1] * 1000000) | tojson(indent='x' * 100000) }}",
    "tojson of a nest": f"{_NS}{{% for i in range(99999) %}}{{% set ns.l = [ns.l] %}}{{% endfor %}}"
    "{{ ns.l | tojson }}",
    "nest as text": f"{_NS}{{% for i in range(99999) %}}{{% set ns.l = [ns.l] %}}{{% endfor %}}"
    "{{ ns.l }}",
    "wide nest": f"{_NS}{{% for i in range(60) %}}{{% set ns.l = [ns.l, ns.l] %}}{{% endfor %}}"
    "{{ ns.l | tojson }}",
    "wide nest as text": f"{_NS}{{% for i in range(60) %}}{{% set ns.l = [ns.l, ns.l] %}}"
    "{% endfor %}{{ ns.l }}",
    "wide nest by pprint": f"{_NS}{{% for i in range(60) %}}{{% set ns.l = [ns.l, ns.l] %}}"
    "{% endfor %}{{ ns.l | pprint }}",
    "wide nests compared": "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}"
    "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}",
    "deep nests compared": "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(90000) %}"
    "{% set ns.a = [ns.a] %}{% set ns.b = [ns.b] %}{% endfor %}{{ ns.a == ns.b }}{{ ns.a < ns.b }}",
    "deep tuples hashed": "{% set ns = namespace(a=(1,)) %}{% for i in range(90000) %}"
    "{% set ns.a = (ns.a, ns.a) %}{% endfor %}{{ {ns.a: 1} | length }}",
    "wide tuples hashed": "{% set ns = namespace(a=(1,)) %}{% for i in range(60) %}"
    "{% set ns.a = (ns.a, ns.a) %}{% endfor %}{{ {ns.a: 1} | length }}",
    "dictionaries": "{% for i in range(99999) %}{% set x = dict([[i, 'x' * 100000]] * 99999) %}"
    "{% endfor %}",
    "dict in dict": "{% set ns = namespace(d={}) %}{% for i in range(99999) %}"
    "{% set ns.d = {'a': ns.d, 'b': ns.d} %}{% endfor %}{{ ns.d }}",
    "dictsort": "{{ dict((range(99999) | list | batch(1)) | list) | dictsort | length }}",
    "many namespaces": "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}"
    "{% set ns.l = ns.l + [namespace(x='x' * 100000)] %}{% endfor %}",
    "cycler": "{% set c = cycler(*([1] * 100000000)) %}{{ c.next() }}",
    "joiner": "{% set j = joiner('x' * 100000000) %}{{ j() }}{{ j() }}{{ j() }}{{ j() }}",
    "lipsum": "{{ lipsum(n=100000, min=1000, max=2000) }}",
    "arguments": "{% macro m() %}{{ varargs | length }}{% endmacro %}{{ m(*([1] * 100000000)) }}",
    "random": "{% for i in range(99999) %}{% set x = (range(99999) | list) | random %}{% endfor %}",
    # Time, files, Python.
    "strftime": "{{ strftime_now('%c' * 10000000) | length }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os }}",
    "extends": "{% extends 'x' %}",
    "codec": "{{ 'x'.encode('zip') }}{{ 'x'.encode('mbcs') }}",
    "message of megabytes": "{{ raise_exception('x' * 100000000) }}",
    "undefined": "{{ nothing.at.all }}",
}  # fmt: skip

COMPILED = {
    "parentheses": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "brackets": "{{ " + "[" * 100_000 + "]" * 100_000 + " }}",
    "not": "{{ " + "not " * 100_000 + "1 }}",
    "minus": "{{ " + "-" * 100_000 + "1 }}",
    "sums": "{{ 1" + " + 1" * 200_000 + " }}",
    "filters": "{{ 1" + " | abs" * 50_000 + " }}",
    "attributes": "{{ a" + ".a" * 100_000 + " }}",
    "blocks": "{% if 1 %}" * 50_000 + "{% endif %}" * 50_000,
    "loops": "{% for a in b %}" * 50_000 + "{% endfor %}" * 50_000,
    "elifs": "{% if 1 %}" + "{% elif 1 %}" * 100_000 + "{% endif %}",
    "constants": "{{ 10 ** 10 ** 10 }}",
    "constants that double": "{{ 'x' * 10 ** 10 }}",
    "names": "".join(f"{{% set a{n} = a{n - 1} %}}" for n in range(1, 20_000)),
    "macros": "".join(f"{{% macro m{n}() %}}{{% endmacro %}}" for n in range(20_000)),
    "raw": "{% raw %}" * 100_000,
    "comments": "{#" * 1_000_000,
    "whitespace": "{{" + " " * 5_000_000 + "1 }}",
    "ternaries": "{{ " + "1 if 1 else " * 50_000 + "1 }}",
    "ends": "{% endfor %}",
    "numbers": "{{ " + "9" * 5_000_000 + " }}",
}


@pytest.fixture(autouse=True)
def short_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the processor, with much patience by the clock."""
    monkeypatch.setattr(template_client, "MAX_SECONDS", 0.1)
    monkeypatch.setattr(template_client, "PATIENCE", 100)


@pytest.fixture
def templates() -> Iterator[list[ChatTemplate]]:
    made: list[ChatTemplate] = []
    yield made
    for template in made:
        template.close()


@pytest.mark.parametrize("name", [*RENDERED, *COMPILED])
def test_it_ends(name: str, templates: list[ChatTemplate]) -> None:
    """In text or in an error, when it is compiled or rendered, and at no cost of this process."""
    source = {**RENDERED, **COMPILED}[name]
    before, began = psutil.Process().memory_info().rss, time.process_time()
    said = ""
    try:
        template = ChatTemplate(source, {})
        templates.append(template)
        assert len(template.render(MESSAGES)) <= MAX_CHARACTERS
    except (CheckpointError, RequestError) as error:
        said = str(error)
    assert said == "" or ("chat template" in said and len(said) < 2000)
    assert time.process_time() - began < 1.0, "it costs this process time"
    assert psutil.Process().memory_info().rss - before < 200e6


def test_there_are_enough_of_them() -> None:
    assert len(RENDERED) + len(COMPILED) >= 125


def test_the_next_conversation_is_answered(templates: list[ChatTemplate]) -> None:
    endless = RENDERED["wide nests compared"]
    template = ChatTemplate(f"{{% if messages | length > 1 %}}{endless}{{% endif %}}ok", {})
    templates.append(template)
    for _ in range(2):
        with pytest.raises(RequestError, match=r"it ran for more than 0\.1 seconds"):
            template.render(MESSAGES)
        assert template.render(MESSAGES[:1]) == "ok"


def test_memory_is_bounded_and_goes_back(
    templates: list[ChatTemplate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_client, "MAX_SECONDS", 5.0)
    large = "{% set one = messages | length %}"
    large += "{% if messages[0].content == 'more' %}{{ 'x' * (one * 10 ** 10) }}{% endif %}"
    large += f"{{% set x = 'x' * (one * {KEPT_BYTES}) %}}{{{{ x | length }}}}"
    template = ChatTemplate(large, {})
    templates.append(template)
    with pytest.raises(RequestError, match=f"more than {MAX_MEMORY_BYTES:,} bytes of memory"):
        template.render([{"role": "user", "content": "more"}])
    for _ in range(3):
        assert template.render(MESSAGES) == str(2 * KEPT_BYTES)  # two messages
        child = template._client._child
        assert child is not None
        process = psutil.Process(child.pid)
        assert process.rlimit(psutil.RLIMIT_AS)[0] == MAX_MEMORY_BYTES
        assert process.memory_info().rss < KEPT_BYTES


def test_it_can_open_no_file(templates: list[ChatTemplate]) -> None:
    template = ChatTemplate("{{ messages[0].content }}", {})
    templates.append(template)
    template.render(MESSAGES)
    child = template._client._child
    assert child is not None
    limits = psutil.Process(child.pid)
    assert limits.rlimit(psutil.RLIMIT_NOFILE) == (0, 0)
    assert limits.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)


def test_a_process_that_was_killed_is_replaced(templates: list[ChatTemplate]) -> None:
    template = ChatTemplate("{{ messages[0].content }}", {})
    templates.append(template)
    for _ in range(3):
        child = template._client._child
        assert child is not None
        os.kill(child.pid, signal.SIGKILL)
        child._process.wait()
        assert template.render(MESSAGES) == "Hello there"
    template.close()
    assert template.render(MESSAGES) == "Hello there"


def test_threads_take_turns(templates: list[ChatTemplate]) -> None:
    template = ChatTemplate("{{ messages[0].content * 1000 }}", {})
    templates.append(template)
    wrong = []

    def ask(letter: str) -> None:
        for _ in range(20):
            if template.render([{"role": "user", "content": letter}]) != letter * 1000:
                wrong.append(letter)

    threads = [threading.Thread(target=ask, args=(letter,)) for letter in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


_DEAF = """
import sys
from loire.text import template_client
template_client.MAX_SECONDS = 60.0
from loire.text.chat_template import ChatTemplate
template = ChatTemplate(sys.argv[1], {})
print(template._client._child.pid, flush=True)
template.render([{"role": "user", "content": "x"}])
"""


def test_sigterm_ends_whoever_waits_and_the_process_that_renders() -> None:
    source = RENDERED["wide nests compared"]
    waiting = subprocess.Popen(
        [sys.executable, "-c", _DEAF, source], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert waiting.stdout is not None
    child = psutil.Process(int(waiting.stdout.readline()))
    waiting.terminate()
    assert waiting.wait(10) == -signal.SIGTERM
    waiting.communicate()
    # Killed as it was, the parent could not end its child; the child's own alarm would do it.
    child.kill()
    child.wait(10)


def test_the_alarm_is_the_systems(templates: list[ChatTemplate]) -> None:
    """A process whose parent is gone ends by itself."""
    program = _DEAF.replace("60.0", "1.0")
    source = "{% if messages[0].content == 'x' %}" + RENDERED["empty loops"] + "{% endif %}"
    parent = subprocess.Popen([sys.executable, "-c", program, source], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 60
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_nothing_is_imported_from_the_working_directory(
    tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch, templates: list[ChatTemplate]
) -> None:
    for name in ("jinja2", "json", "markupsafe", "struct", "resource"):
        with open(os.path.join(tmp_path, f"{name}.py"), "w") as file:
            file.write("open('taken', 'w').close()\nraise SystemExit(1)\n")
    monkeypatch.chdir(tmp_path)
    template = ChatTemplate("{{ messages | length }}", {})
    templates.append(template)
    assert template.render(MESSAGES) == "2"
    assert not os.path.exists("taken")
