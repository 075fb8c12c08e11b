"""The calls that can be asked about: those that run, and the latest that have ended."""

from loire.server.web.call import Call, RequestLife

MAX_CALLS = 1000
MAX_LIVES = 4000
"""Requests of all those calls together: one call can bring a thousand."""


class RecentCalls:
    """The latest calls, found by their ids and by the engine's names of their requests.

    An id is the caller's own word, so that several calls may have the same.
    """

    def __init__(self) -> None:
        self._calls: dict[Call, int] = {}
        """With how many of its requests are counted; the latest call is the last."""
        self._found_by: dict[str, dict[Call, None]] = {}
        self._num_lives = 0

    def add(self, call: Call, life: RequestLife) -> None:
        """A call has made this request, the last of call.requests."""
        if call in self._calls:
            self._num_lives += 1
            self._calls[call] = self._calls.pop(call) + 1
            self._index(life.request_id, call)
        else:
            self._num_lives += len(call.requests)
            self._calls[call] = len(call.requests)
            self._index(call.call_id, call)
            for own in call.requests:
                self._index(own.request_id, call)
        while len(self._calls) > MAX_CALLS or self._num_lives > MAX_LIVES:
            oldest = next(iter(self._calls))
            if oldest is call:
                return
            self._forget(oldest)

    def find(self, wanted: str) -> list[Call]:
        """The calls with this id, or with a request that has it, the latest first."""
        return list(reversed(self._found_by.get(wanted, {})))

    def latest(self) -> list[Call]:
        """All of them, the latest first."""
        return list(reversed(self._calls))

    def _index(self, name: str, call: Call) -> None:
        self._found_by.setdefault(name, {})[call] = None

    def _forget(self, call: Call) -> None:
        self._num_lives -= self._calls.pop(call)
        for name in (call.call_id, *(life.request_id for life in call.requests)):
            found = self._found_by.get(name, {})
            found.pop(call, None)
            if not found:
                self._found_by.pop(name, None)
