"""The client's side of a request: the ledger of what was asked and what has come.

Turns token ids into text, matches stop strings, and gives outputs to the user. Imports no
execution: it can live in another process than the engine.
"""

import json

from loire.base.messages import SequenceUpdate
from loire.base.outputs import (
    CompletionOutput,
    FinishReason,
    Logprob,
    PositionLogprobs,
    RequestOutput,
    RequestTiming,
)
from loire.base.step import TokenLogprobs
from loire.engine.requests import Submission
from loire.text.detokenizer import IncrementalDetokenizer
from loire.text.stop import StopMatcher
from loire.text.tokenizer import Tokenizer


class CompletionLedger:
    """One of the n completions: its tokens, its text, and how it ended.

    keeps: whether it holds what has come, for so_far().
    """

    def __init__(
        self, index: int, submission: Submission, tokenizer: Tokenizer, *, keeps: bool
    ) -> None:
        request = submission.request
        self.index = index
        self.num_tokens = 0
        self.token_ids: list[int] = []
        self.logprobs: list[PositionLogprobs] = []
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.error: str | None = None
        self._text: list[str] = []
        self._params = request.params
        form = request.params.structured_outputs
        self._keeps = keeps
        self._is_json = form is not None and form.is_json
        self._stop_token_ids = frozenset(request.stop_token_ids)
        self._tokenizer = tokenizer
        self._detokenizer = IncrementalDetokenizer(
            tokenizer,
            request.prompt_token_ids,
            self._params.skip_special_tokens,
            submission.shown_ids,
        )
        self._matcher = StopMatcher(self._params.stop, self._params.include_stop_str_in_output)

    @property
    def text(self) -> str:
        """All text so far, without what might still become a stop string."""
        return "".join(self._text)

    def apply(self, update: SequenceUpdate) -> CompletionOutput:
        """Enter what has come; the output is what is new."""
        first = self.num_tokens
        self.num_tokens += len(update.token_ids)
        logprobs = [position_logprobs(entry, self._tokenizer) for entry in update.logprobs]
        if self._keeps:
            self.token_ids += update.token_ids
            self.logprobs += logprobs
        text = self._new_text(update, first)
        if self.finish_reason is None and update.finish_reason is not None:
            self.finish_reason = update.finish_reason
            self.stop_reason = update.stop_reason
            self.error = update.error
        if self._keeps or self._is_json:
            self._text.append(text)
        if self.finish_reason == "stop" and self._is_cut():
            self.finish_reason, self.stop_reason = "length", None
        return CompletionOutput(
            index=self.index,
            text=text,
            token_ids=update.token_ids,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            logprobs=tuple(logprobs) if self._params.logprobs is not None else None,
            error=self.error,
        )

    def _is_cut(self) -> bool:
        """Whether the output should be JSON, but ended inside it (a stop string can do that)."""
        if not self._is_json:
            return False
        try:
            json.loads(self.text)
        except (ValueError, RecursionError):
            return True
        return False

    def so_far(self) -> CompletionOutput:
        """Everything that has come."""
        return CompletionOutput(
            index=self.index,
            text=self.text,
            token_ids=tuple(self.token_ids),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            logprobs=tuple(self.logprobs) if self._params.logprobs is not None else None,
            error=self.error,
        )

    def _new_text(self, update: SequenceUpdate, first: int) -> str:
        token_ids = update.token_ids
        if (
            update.finish_reason == "stop"
            and token_ids
            and token_ids[-1] in self._stop_token_ids
            and not self._params.include_stop_str_in_output
        ):
            token_ids = token_ids[:-1]
        released = ""
        for offset, token_id in enumerate(token_ids):
            piece = self._detokenizer.push((token_id,))
            released += self._match(piece, first + offset)
            if self.finish_reason is not None:
                return released
        if update.finish_reason is not None:
            released += self._match(self._detokenizer.flush(), self.num_tokens)
            if self.finish_reason is None:
                released += self._matcher.flush()
        return released

    def _match(self, text: str, position: int) -> str:
        """Text that is certain not to belong to a stop string; ends the completion at a match."""
        if position < self._params.min_tokens:
            return text
        released, stop = self._matcher.push(text)
        if stop is not None:
            self.finish_reason, self.stop_reason = "stop", stop
        return released


class RequestLedger:
    """One request, from submission to end.

    keeps: whether it holds all that has come, for so_far(); a stream's reader has it already.
    """

    def __init__(
        self, submission: Submission, tokenizer: Tokenizer, *, keeps: bool = False
    ) -> None:
        self.submission = submission
        self.completions = [
            CompletionLedger(index, submission, tokenizer, keeps=keeps)
            for index in range(submission.request.params.n)
        ]
        self.num_cached_tokens = 0
        self._tokenizer = tokenizer
        self._prompt_logprobs: tuple[PositionLogprobs | None, ...] = (None,)
        self._pooled: tuple[float, ...] | None = None
        self._first_scheduled_s: float | None = None
        self._first_token_s: float | None = None
        self._last_token_s: float | None = None

    @property
    def request_id(self) -> str:
        """Id of the request."""
        return self.submission.request.request_id

    @property
    def finished(self) -> bool:
        """Whether all completions have ended."""
        return all(completion.finish_reason is not None for completion in self.completions)

    def apply(self, update: SequenceUpdate, arrived_s: float) -> tuple[RequestOutput, bool] | None:
        """Enter an update, which came at a monotonic time. Returns what is new, and whether the
        engine must be told to end this choice because its text met a stop string. None for news of
        a choice that has ended.
        """
        completion = self.completions[update.choice]
        if completion.finish_reason is not None:
            return None
        self._note_times(update, arrived_s)
        self.num_cached_tokens = max(self.num_cached_tokens, update.num_cached_tokens)
        if update.prompt_logprobs:
            self._prompt_logprobs += tuple(
                position_logprobs(entry, self._tokenizer) for entry in update.prompt_logprobs
            )
        self._pooled = update.pooled or self._pooled
        delta = completion.apply(update)
        must_abort = delta.finish_reason is not None and update.finish_reason is None
        return self._output((delta,)), must_abort

    def so_far(self) -> RequestOutput:
        """The request with everything that has come."""
        return self._output(tuple(completion.so_far() for completion in self.completions))

    def _output(self, outputs: tuple[CompletionOutput, ...]) -> RequestOutput:
        request = self.submission.request
        wants_prompt = request.params.prompt_logprobs is not None
        return RequestOutput(
            request_id=request.request_id,
            prompt=self.submission.prompt,
            prompt_token_ids=request.prompt_token_ids,
            outputs=outputs,
            finished=self.finished,
            num_cached_tokens=self.num_cached_tokens,
            prompt_logprobs=self._prompt_logprobs if wants_prompt else None,
            pooled=self._pooled,
            timing=self._timing(),
        )

    def _note_times(self, update: SequenceUpdate, arrived_s: float) -> None:
        self._first_scheduled_s = self._first_scheduled_s or update.first_scheduled_s
        if update.token_ids:
            self._last_token_s = arrived_s
            self._first_token_s = self._first_token_s or arrived_s

    def _timing(self) -> RequestTiming:
        arrival = self.submission.arrival_s
        first, last = self._first_token_s, self._last_token_s
        if first is None or last is None:
            return RequestTiming()
        longest = max(completion.num_tokens for completion in self.completions)
        return RequestTiming(
            queue_s=None if self._first_scheduled_s is None else self._first_scheduled_s - arrival,
            ttft_s=first - arrival,
            tpot_s=(last - first) / (longest - 1) if longest > 1 else None,
            total_s=last - arrival,
        )


def position_logprobs(entry: TokenLogprobs, tokenizer: Tokenizer) -> PositionLogprobs:
    """Log-probabilities of one position by token id, the token that stands there first."""
    chosen = entry.token_ids[0]
    position = {
        chosen: Logprob(entry.logprobs[0], entry.rank, tokenizer.token_text(chosen)),
    }
    for rank, (token_id, logprob) in enumerate(
        zip(entry.token_ids[1:], entry.logprobs[1:], strict=True), start=1
    ):
        position.setdefault(token_id, Logprob(logprob, rank, tokenizer.token_text(token_id)))
    return position
