"""The scanner accepts what Python's own parser accepts, and refuses at the first mistake."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loire.text.tools.json_scanner import JsonScanner

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12
)
containers = st.lists(values) | st.dictionaries(st.text(), values)


def accepted(text: str) -> int:
    """How many characters the scanner takes."""
    scanner = JsonScanner()
    for index, character in enumerate(text):
        if not scanner.push(character):
            return index
    return len(text)


def is_complete(text: str) -> bool:
    scanner = JsonScanner()
    return all(map(scanner.push, text)) and scanner.state == "done"


def is_json(text: str) -> bool:
    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        return isinstance(json.loads(text, parse_constant=refuse), dict | list)
    except ValueError:
        return False


@settings(deadline=None)
@given(containers, st.booleans(), st.sampled_from([None, 0, 2]))
def test_json_is_taken(value: Any, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    scanner = JsonScanner()
    for character in text:
        assert scanner.state != "done", "it is complete before its end"
        assert scanner.push(character)
    assert scanner.state == "done"


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet='{}[]",:\\/ntrue0fals1.-+eE \n\tu\x01', max_size=14), st.booleans())
def test_it_agrees_with_python(body: str, as_object: bool) -> None:
    text = f'{{"a":{body}}}' if as_object else f"[{body}]"
    assert is_complete(text) == is_json(text)


@settings(deadline=None)
@given(containers, st.data())
def test_a_changed_character_is_judged_as_python_does(value: Any, data: st.DataObject) -> None:
    text = json.dumps(value)
    index = data.draw(st.integers(0, len(text) - 1))
    changed = text[:index] + data.draw(st.sampled_from('{}[]",:\\0e-x ')) + text[index + 1 :]
    assert is_complete(changed) == is_json(changed)


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("[01]", 2),
        ("[1.]", 3),
        ("[-]", 2),
        ("[1e]", 3),
        ("[nul]", 4),
        ('{"a" 1}', 5),
        ("{a}", 1),
        ('{"a":1,}', 7),
        ("[1,]", 3),
        ("[}", 1),
        ('["\n"]', 2),
        (r'["\x"]', 3),
        (r'["\u12G4"]', 6),
        ("[] ]", 2),
        ("1", 0),
    ],
)
def test_the_mistake_is_found_where_it_is(text: str, index: int) -> None:
    assert accepted(text) == index
