"""What the supervisor remembers of unfinished requests, so that another engine can go on with them.

When the engine's process dies, every request that has not ended is sent to the next one with the
tokens it had given; sampling is a pure function of (seed, choice, position), so the text goes on
as if nothing had happened.

One of those requests may be what killed the engine. Suspects are those that the dead engine had
begun, but that had proven nothing in it. The first engine that a request runs in proves it with its
first token; one that was in work at a death must give some more in the next engine than it may have
given again and again just before the harm. Suspects are sent one at a time, while nothing else is
unproven: first the requests that had been giving tokens, then each suspect alone, then all others.
A request that was in work at two deaths, and the only suspect of the second, is failed, alone, and
not sent a third time. One kill from outside therefore costs nobody an answer.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from loire.base.messages import EngineRequest, SequenceUpdate

MAX_STRIKES = 2
"""Engines that may die with a request in work before it is failed."""
MIN_PROOF = 4
"""Updates of one choice that prove a request which was in work when an engine died."""


@dataclass(slots=True, eq=False)
class Entry:
    """One unfinished request.

    Attributes:
        outputs: tokens received, per choice.
        ended: choices that have ended.
        sent: whether the engine that runs now has it.
        begun: whether that engine has computed, or is about to compute, anything of it.
        num_given: updates that engine has given, per choice.
        strikes: deaths in a row with it in work; it has not proven itself between them.
        encoded: the message that sends it, until it is sent or an engine dies.
    """

    request: EngineRequest
    outputs: list[list[int]]
    num_given: list[int]
    encoded: bytes | None = None
    ended: set[int] = field(default_factory=set)
    num_prompt_logprobs: int = 0
    num_cached_tokens: int | None = None
    sent: bool = False
    begun: bool = False
    suspect: bool = False
    strikes: int = 0
    num_to_skip: int = 0
    """Prompt log-probabilities that the engine will give once more."""

    @property
    def resumes(self) -> bool:
        """Whether it has given tokens, and nothing speaks against it."""
        return any(self.outputs) and not self.suspect

    @property
    def proven(self) -> bool:
        """Whether it has given enough in the engine that runs now."""
        return max(self.num_given) >= (MIN_PROOF if self.strikes else 1)

    @property
    def num_tokens(self) -> int:
        """Tokens to compute before it gives its next one."""
        return len(self.request.prompt_token_ids) + sum(map(len, self.outputs))

    def to_send(self) -> EngineRequest:
        """The request with what it has given."""
        if not any(self.outputs):
            return self.request  # which also lets siblings share the prompt's computation
        return replace(self.request, output_token_ids=tuple(map(tuple, self.outputs)))


class Journal:
    """Unfinished requests in order of arrival, and which of them may be sent now."""

    def __init__(self) -> None:
        self.num_waiting = 0
        """Requests that the engine has not begun."""
        self.num_waiting_sequences = 0
        """That they ask for: n of each."""
        self.num_waiting_tokens = 0
        """Prompt tokens of those."""
        self._entries: dict[str, Entry] = {}
        self._held: dict[str, Entry] = {}
        """Those that the engine does not have."""
        self._unproven: dict[str, Entry] = {}
        """Those that the engine has and that have given nothing there."""
        self._num_suspects = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._entries

    @property
    def num_held(self) -> int:
        """Requests that are still to be sent."""
        return len(self._held)

    @property
    def num_sent(self) -> int:
        """Requests that the engine has."""
        return len(self._entries) - len(self._held)

    @property
    def num_unproven_tokens(self) -> int:
        """Tokens that the engine has to compute before all requests it has have given one."""
        return sum(entry.num_tokens for entry in self._unproven.values())

    def add(self, request: EngineRequest, encoded: bytes | None = None) -> None:
        """Remember a new request, perhaps with what it gave elsewhere; next_to_send() gives it out.

        encoded: see Entry.
        """
        if request.request_id in self._entries:
            raise ValueError(f"request id {request.request_id!r} is in use")
        n = request.params.n
        outputs = [list(token_ids) for token_ids in request.output_token_ids]
        outputs += [[] for _ in range(n - len(outputs))]
        entry = Entry(request, outputs, [0] * n, encoded)
        self._entries[request.request_id] = entry
        self._held[request.request_id] = entry
        self._count_waiting(entry, 1)

    def remove(self, request_id: str) -> bool:
        """Forget a request. Whether the engine has it, and must be told."""
        entry = self._entries.pop(request_id, None)
        if entry is None:
            return False
        self._held.pop(request_id, None)
        self._unproven.pop(request_id, None)
        self._clear(entry)
        if not entry.begun:
            self._count_waiting(entry, -1)
        return entry.sent

    def end_choice(self, request_id: str, choice: int) -> bool:
        """Note that a choice has ended. Whether the engine has it, and must be told."""
        entry = self._entries.get(request_id)
        if entry is None:
            return False
        entry.ended.add(choice)
        was_sent = entry.sent
        self._remove_if_ended(entry)
        return was_sent

    def begin(self, request_ids: Iterable[str]) -> None:
        """Note that the engine is about to compute these."""
        for request_id in request_ids:
            entry = self._entries.get(request_id)
            if entry is not None and not entry.begun:
                entry.begun = True
                self._count_waiting(entry, -1)

    def accept(self, update: SequenceUpdate) -> SequenceUpdate | None:
        """Enter the engine's news; what of it is news to the client, if anything."""
        entry = self._entries.get(update.request_id)
        if entry is None or update.choice in entry.ended:
            return None
        self.begin((update.request_id,))
        entry.num_given[update.choice] += 1
        if entry.proven:
            self._unproven.pop(update.request_id, None)
            self._clear(entry)
        entry.outputs[update.choice] += update.token_ids
        if update.finish_reason is not None:
            entry.ended.add(update.choice)
            self._remove_if_ended(entry)
        if entry.num_cached_tokens is None:
            entry.num_cached_tokens = update.num_cached_tokens
        if not entry.num_to_skip and entry.num_cached_tokens == update.num_cached_tokens:
            entry.num_prompt_logprobs += len(update.prompt_logprobs)
            return update
        return self._without_repetition(entry, update)

    def next_to_send(self) -> list[Entry]:
        """The requests to send now; they count as sent."""
        if not self._held or (self._num_suspects and self._unproven):
            return []
        chosen = list(self._held.values())
        if self._num_suspects:
            resuming = [entry for entry in chosen if entry.resumes]
            suspects = [entry for entry in chosen if entry.suspect]
            chosen = resuming or suspects[:1]
        for entry in chosen:
            request_id = entry.request.request_id
            entry.sent = True
            del self._held[request_id]
            self._unproven[request_id] = entry
        return chosen

    def crashed(self) -> Entry | None:
        """The engine has died: all requests are to be sent again, to another one.

        Returns the request that has now killed its second engine, if there is one; it is removed.
        """
        suspects = [entry for entry in self._unproven.values() if entry.begun]
        for entry in self._entries.values():
            if entry.begun:
                self._count_waiting(entry, 1)
                entry.strikes = 1 if entry.proven else entry.strikes + 1
            self._reset(entry)
        for entry in suspects:
            self._num_suspects += not entry.suspect
            entry.suspect = True
        # In order of arrival again.
        self._held = dict(self._entries)
        self._unproven.clear()
        if len(suspects) == 1:
            [culprit] = suspects
            if culprit.strikes >= MAX_STRIKES:
                self.remove(culprit.request.request_id)
                return culprit
        return None

    @property
    def request_ids(self) -> tuple[str, ...]:
        """All requests, in order of arrival."""
        return tuple(self._entries)

    def adapters(self) -> set[str]:
        """Those that requests are for, by their content."""
        return {entry.request.adapter for entry in self._entries.values()}

    def entry(self, request_id: str) -> Entry:
        """A request that is here."""
        return self._entries[request_id]

    def give_away(self, request_id: str) -> Entry | None:
        """Take out a request that is to go on in an engine with another journal; None if it is not
        here."""
        entry = self._entries.get(request_id)
        if entry is None:
            return None
        suspect = entry.suspect
        self.remove(request_id)
        self._reset(entry)
        entry.suspect = suspect
        return entry

    def adopt(self, entry: Entry) -> None:
        """Remember a request that another journal gave away, with all that is known of it."""
        request_id = entry.request.request_id
        if request_id in self._entries:
            raise ValueError(f"request id {request_id!r} is in use")
        self._entries[request_id] = entry
        self._held[request_id] = entry
        self._num_suspects += entry.suspect
        self._count_waiting(entry, 1)

    def clear(self) -> list[Entry]:
        """Forget everything; what was unfinished."""
        entries = list(self._entries.values())
        for entry in entries:
            self.remove(entry.request.request_id)
        return entries

    def _without_repetition(self, entry: Entry, update: SequenceUpdate) -> SequenceUpdate:
        """An update of a resumed request, without what an engine before had told.

        Tokens found in the cache are those that the first engine found: the second one may
        find some of the output there.
        """
        num_skipped = min(entry.num_to_skip, len(update.prompt_logprobs))
        entry.num_to_skip -= num_skipped
        new = update.prompt_logprobs[num_skipped:]
        entry.num_prompt_logprobs += len(new)
        return replace(update, prompt_logprobs=new, num_cached_tokens=entry.num_cached_tokens or 0)

    def _reset(self, entry: Entry) -> None:
        """Another engine will have it."""
        entry.num_to_skip = entry.num_prompt_logprobs
        entry.sent = entry.begun = False
        entry.num_given = [0] * len(entry.num_given)
        entry.encoded = None

    def _remove_if_ended(self, entry: Entry) -> None:
        if len(entry.ended) == len(entry.outputs):
            self.remove(entry.request.request_id)

    def _clear(self, entry: Entry) -> None:
        self._num_suspects -= entry.suspect
        entry.suspect = False

    def _count_waiting(self, entry: Entry, sign: int) -> None:
        self.num_waiting += sign
        self.num_waiting_sequences += sign * entry.request.params.n
        self.num_waiting_tokens += sign * len(entry.request.prompt_token_ids)
