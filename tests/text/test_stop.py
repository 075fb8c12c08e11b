"""Stop strings: the same result however the text was cut."""

from hypothesis import given
from hypothesis import strategies as st

from loire.text.stop import StopMatcher

TEXT = st.text(alphabet="abé", max_size=20)
STOPS = st.lists(st.text(alphabet="abé", min_size=1, max_size=4), max_size=4)


def expected(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """By definition: the first end at which some stop string is complete, the longest of them."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


@given(TEXT, STOPS, st.booleans(), st.data())
def test_in_any_pieces(text: str, stops: list[str], include: bool, data: st.DataObject) -> None:
    matcher = StopMatcher(stops, include)
    released, found, left = "", None, text
    while left and found is None:
        cut = data.draw(st.integers(1, len(left)))
        piece, found = matcher.push(left[:cut])
        released, left = released + piece, left[cut:]
        if found is None:
            pushed = text[: len(text) - len(left)]
            beginnings = [stop[:n] for stop in stops for n in range(1, len(stop))]
            held = max((len(b) for b in beginnings if pushed.endswith(b)), default=0)
            assert len(released) == len(pushed) - held, "holds what may be a stop, and no more"
    if found is None:
        released += matcher.flush()
    assert (released, found) == expected(text, stops, include)


def test_nothing_is_held_back_without_need() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push("some text E") == ("some text ", None)
    assert matcher.push("x") == ("Ex", None)
    assert matcher.push("EN") == ("", None)
    assert matcher.flush() == "EN"
    assert matcher.flush() == ""


def test_of_two_that_end_together_the_longer_is_found() -> None:
    assert StopMatcher(["b", "ab"]).push("xabx") == ("x", "ab")
    assert StopMatcher(["abcd", "bc"]).push("abcd") == ("a", "bc"), "complete first"
