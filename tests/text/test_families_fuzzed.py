"""Each family's call with a mistake at each of its bytes: read the same byte by byte as whole."""

import codecs
import json
from collections.abc import Iterable, Iterator

import pytest

from loire.text.tools.definitions import Tool
from loire.text.tools.events import (
    AnswerEvent,
    ArgumentsDelta,
    CallBroken,
    CallEnded,
    CallStarted,
    ContentDelta,
    ReasoningDelta,
)
from loire.text.tools.families import call_parser, choose_format
from loire.text.tools.harmony import HARMONY, HarmonyParser
from support.family_texts import FAMILIES, PARAMETERS

LEVEL = Tool(name="level", parameters=PARAMETERS)
ODD = (b"", b"<", b'"', b"}", b"]", b"\n", b"\xff", b"<|")
"""What stands in a byte's place."""


def mistakes(text: bytes) -> Iterator[tuple[bytes, bool]]:
    """The text cut off at each byte, and with another thing in its place; whether it was cut."""
    for place in range(len(text)):
        yield text[:place], True
        yield text[:place], False
        odd = ODD[place % len(ODD)]
        yield text[:place] + odd + text[place + 1 :], False
        yield text[:place] + text[place : place + 1] + text[place:], False


def decoded(pieces: Iterable[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for piece in pieces:
        if text := decoder.decode(piece):
            yield text
    if rest := decoder.decode(b"", final=True):
        yield rest


def read(family: str, texts: Iterable[str], *, truncated: bool) -> list[AnswerEvent]:
    tool_format = choose_format(FAMILIES[family][0])
    ids = map(str, range(100))
    parser = (
        HarmonyParser(frozenset({"level"}), new_id=lambda: next(ids))
        if tool_format is HARMONY
        else call_parser(tool_format, (LEVEL,), new_id=lambda: next(ids))
    )
    events: list[AnswerEvent] = [event for text in texts for event in parser.push(text)]
    return events + list(parser.finish(truncated=truncated))


Joined = tuple[str, str, list[tuple[str, str]], list[tuple[str, str]]]


def joined(events: list[AnswerEvent]) -> Joined:
    """Thoughts, content, calls that ended and calls left open; the order must make sense."""
    thoughts = content = ""
    told: dict[int, tuple[str, str]] = {}
    ended: list[tuple[str, str]] = []
    open_call: int | None = None
    for event in events:
        match event:
            case ReasoningDelta(text):
                thoughts += text
            case ContentDelta(text):
                assert open_call is None
                content += text
            case CallStarted(index, _, name):
                assert open_call is None
                assert index == len(told)
                told[index], open_call = (name, ""), index
            case ArgumentsDelta(index, text):
                assert index == open_call
                told[index] = told[index][0], told[index][1] + text
            case CallEnded(index):
                assert index == open_call
                ended.append(told[index])
                open_call = None
            case CallBroken(index):
                assert index == open_call
                open_call = None
    return thoughts, content, ended, [] if open_call is None else [told[open_call]]


def without_marks(family: str, text: str) -> str:
    """Without whitespace, and what may stand around calls: what is left must be said."""
    block = choose_format(FAMILIES[family][0]).block
    for mark in () if block is None else block.around:
        text = text.replace(mark, "")
    return "".join(text.split())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mistake_at_each_byte(family: str) -> None:
    text = FAMILIES[family][1].encode()
    assert joined(read(family, [text.decode()], truncated=False))[2]
    for wrong, truncated in mistakes(text):
        whole = joined(read(family, ["".join(decoded([wrong]))], truncated=truncated))
        pieces = decoded(wrong[place : place + 1] for place in range(len(wrong)))
        assert joined(read(family, pieces, truncated=truncated)) == whole, wrong
        if family != "harmony" and not whole[2] and not whole[3]:
            said = "".join(decoded([wrong]))
            assert without_marks(family, whole[1]) == without_marks(family, said)
        for name, arguments in whole[2]:
            assert name == "level"
            assert isinstance(json.loads(arguments), dict), wrong
