"""Stop strings, found in text that comes in pieces of any size."""

from collections.abc import Sequence


class StopMatcher:
    """Holds back text that might be the beginning of a stop string.

    The match that is complete first wins, the longest of those that end together; so the result
    does not depend on how the text was cut.
    """

    def __init__(self, stops: Sequence[str], include_stop: bool = False) -> None:
        self._stops = tuple(stops)
        self._include_stop = include_stop
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Take in text: what can be released now, and the stop string if one is complete.

        After a match the text ends before it (or after it, with include_stop).
        """
        if not self._stops:
            return text, None
        text = self._held + text
        found: tuple[int, int, str] | None = None
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0:
                candidate = (start + len(stop), start, stop)
                found = candidate if found is None else min(found, candidate)
        if found is not None:
            end, start, stop = found
            self._held = ""
            return text[: end if self._include_stop else start], stop
        keep = self._longest_beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def flush(self) -> str:
        """What was held back, when nothing more comes."""
        held, self._held = self._held, ""
        return held

    def _longest_beginning(self, text: str) -> int:
        """Length of the longest end of text with which some stop string begins."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest
