"""Thoughts are told from the answer, whatever the pieces."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loire.text.answer_parser import AnswerParser
from loire.text.dialect import read_dialect
from loire.text.reasoning import (
    GEMMA_THINK,
    MISTRAL_THINK,
    MOST_SPACE,
    THINK,
    ReasoningMarks,
    ReasoningSplitter,
)
from loire.text.tools.events import CallStarted, ContentDelta, ReasoningDelta
from loire.text.tools.formats import HERMES
from loire.text.tools.parser import ToolParser


def split(
    pieces: list[str], *, inside: bool = False, marks: ReasoningMarks = THINK
) -> tuple[str, str]:
    splitter = ReasoningSplitter(marks, inside=inside)
    parts = [part for piece in pieces for part in splitter.push(piece)] + splitter.finish()
    assert all(part.text for part in parts)
    kinds = [type(part) for part in parts]
    assert kinds == sorted(kinds, key=lambda kind: kind is ContentDelta)
    return (
        "".join(part.text for part in parts if isinstance(part, ReasoningDelta)),
        "".join(part.text for part in parts if isinstance(part, ContentDelta)),
    )


@pytest.mark.parametrize(
    ("text", "inside", "expected"),
    [
        ("<think>\nHm.\n</think>\n\nYes.\n", False, ("Hm.", "Yes.\n")),
        ("\n <think>a < b </thin </think> c", False, ("a < b </thin", "c")),
        ("Hm.\n\nSo.\n</think>\n\nYes.", True, ("Hm.\n\nSo.", "Yes.")),
        ("Hm. <think> </think>Yes </think>", True, ("Hm. <think>", "Yes </think>")),
        ("Yes. <think>no</think>", False, ("", "Yes. <think>no</think>")),
        ("<think>\n\n</think>\n\nYes", False, ("", "Yes")),
        ("<think>never ended </th", False, ("never ended </th", "")),
        ("never ended \n", True, ("never ended", "")),
        ("<thin", False, ("", "<thin")),
        (" <thing>", False, ("", " <thing>")),
        ("", False, ("", "")),
        ("  ", True, ("", "")),
    ],
)
def test_every_cut(text: str, inside: bool, expected: tuple[str, str]) -> None:
    assert split([text], inside=inside) == expected
    for cut in range(1, len(text)):
        assert split([text[:cut], text[cut:]], inside=inside) == expected
    assert split(list(text), inside=inside) == expected


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.sampled_from(["<think>", "</think>", "</", "<", "a", " ", "\n", " " * 150])).map(
        "".join
    ),
    st.booleans(),
    st.data(),
)
def test_random_pieces(text: str, inside: bool, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert split(pieces, inside=inside) == split([text], inside=inside)


def test_whitespace_without_end_is_not_held() -> None:
    for inside in (False, True):
        splitter = ReasoningSplitter(THINK, inside=inside)
        for _ in range(1_000):
            splitter.push("\n" * 9)
            assert len(splitter._held) <= MOST_SPACE
    spaces = " " * (MOST_SPACE + 1)
    assert split([f"a{spaces}</think>b"], inside=True) == ("a ", "b")
    assert split([f"{spaces}<think>a</think>b"]) == ("", f"{spaces}<think>a</think>b")


def test_thoughts_come_as_they_are_thought() -> None:
    splitter = ReasoningSplitter(THINK, inside=True)
    assert splitter.push("Let me") == [ReasoningDelta("Let me")]
    assert splitter.push(" think ") == [ReasoningDelta(" think")]
    assert splitter.push("more</thi") == [ReasoningDelta(" more")]
    assert splitter.push("nk>Yes") == [ContentDelta("Yes")]


def test_other_marks() -> None:
    assert split(["[THINK]a[/THINK]b"], marks=MISTRAL_THINK) == ("a", "b")


def test_gemma_names_its_channel() -> None:
    text = "<|channel>thought\nDeep.\n<channel|>Yes"
    for pieces in ([text], list(text)):
        assert split(pieces, marks=GEMMA_THINK) == ("Deep.", "Yes")
    assert split(list("<|channel>thought\n<channel|>Yes"), marks=GEMMA_THINK) == ("", "Yes")
    assert read_dialect("{{ '<channel|>' }}", set()).reasoning is GEMMA_THINK


def test_a_call_in_a_thought_is_none() -> None:
    call = '<tool_call>{"name": "f"}</tool_call>'
    parser = AnswerParser(ReasoningSplitter(THINK), ToolParser(HERMES, {"f"}, new_id=lambda: "x"))
    events = parser.push(f"<think>Shall I {call}?</think>{call}")
    events += parser.finish(truncated=False)
    assert events[0] == ReasoningDelta(f"Shall I {call}?")
    assert CallStarted(0, "x", "f") in events
    assert not any(isinstance(event, ContentDelta) for event in events)
    assert parser.num_calls == 1


def test_nothing_to_look_for() -> None:
    parser = AnswerParser(None, None)
    text = '<think>a</think><tool_call>{"name": "f"}'
    assert parser.push(text) == [ContentDelta(text)]
    assert parser.push("") == []
    assert parser.finish(truncated=False) == []
