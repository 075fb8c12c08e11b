"""What users import: `LLM` computes in the caller's process, `AsyncLLM` is its twin for servers.

    from loire import LLM, SamplingParams

    llm = LLM("smollm2")
    [output] = llm.generate("The capital of France is", SamplingParams(temperature=0))
    print(output.outputs[0].text)

Names and arguments follow vLLM's where it has them.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from itertools import count
from types import TracebackType
from typing import Any, cast

from loire.base.config import EngineConfig, EngineOptions
from loire.base.errors import EngineError, RequestError
from loire.base.outputs import RequestOutput
from loire.base.sampling import Pooling, SamplingParams
from loire.base.step import StepRecord
from loire.engine.client import RequestStreams
from loire.engine.frontend import Frontend, Message
from loire.engine.ledger import RequestLedger
from loire.engine.requests import Submission
from loire.engine.start import Engine, start_engine
from loire.engine.thread import EngineThread

Prompt = str | Sequence[int] | Mapping[str, Any]
"""Text, token ids, or {"prompt": text} or {"prompt_token_ids": [...]}, optionally with
"cache_salt"."""


def _take_prompt(prompt: Prompt) -> tuple[str | Sequence[int], str]:
    """The prompt proper, and its cache salt."""
    if not isinstance(prompt, Mapping):
        return prompt, ""
    unknown = set(prompt) - {"prompt", "prompt_token_ids", "cache_salt"}
    if unknown or ("prompt" in prompt) == ("prompt_token_ids" in prompt):
        raise RequestError(
            f"a prompt is text, a list of token ids, or a dictionary with either 'prompt' or "
            f"'prompt_token_ids' (and 'cache_salt'), but its keys are {sorted(prompt)}",
            param="prompt",
        )
    salt = prompt.get("cache_salt", "")
    if "prompt" in prompt:
        return cast("str", prompt["prompt"]), salt
    return cast("Sequence[int]", prompt["prompt_token_ids"]), salt


class LLM:
    """A model and an engine in this process; calls compute until their answers are complete.

    model: a name of the store ("smollm2"), a directory, a GGUF file, or a hub id. The options are
    those of EngineOptions. Frees its memory on close() or when it is deleted.

    Raises ModelError if the model cannot be loaded, ConfigError if an option does not work.
    """

    def __init__(
        self,
        model: str,
        *,
        allow_download: bool = True,
        progress: Callable[[float], None] | None = None,
        **options: Any,
    ) -> None:
        self._engine: Engine | None = start_engine(
            model, EngineOptions(**options), allow_download=allow_download, progress=progress
        )
        self._frontend = self._engine.frontend()
        self._ids = count()

    @property
    def engine(self) -> Engine:
        """The engine. Raises EngineError after close()."""
        if self._engine is None:
            raise EngineError("this LLM was closed")
        return self._engine

    @property
    def config(self) -> EngineConfig:
        """The settled configuration."""
        return self.engine.config

    @property
    def frontend(self) -> Frontend:
        """Tokenizer, chat template and request checks."""
        return self._frontend

    @property
    def records(self) -> Sequence[StepRecord]:
        """What happened in the latest steps, oldest first."""
        return tuple(self.engine.core.records)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Complete one or many prompts together; outputs come in the prompts' order.

        Raises RequestError before anything is computed if any prompt cannot be accepted.
        """
        many = self._as_prompts(prompts)
        params = _spread(sampling_params, len(many))
        submissions = [self._submission(prompt, p) for prompt, p in zip(many, params, strict=True)]
        return self._run(submissions)

    def embed(
        self, prompts: Prompt | Sequence[Prompt], *, pooling: Pooling = "mean"
    ) -> list[tuple[float, ...]]:
        """Each prompt as a vector [E] of length 1: its hidden states after the final norm, pooled.

        Raises RequestError before anything is computed if any prompt cannot be accepted.
        """
        outputs = self.generate(prompts, SamplingParams(max_tokens=1, pooling=pooling))
        return [_vector(output) for output in outputs]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or many, through the model's chat template."""
        first = messages[0] if messages else {}
        conversations = cast(
            "Sequence[Sequence[Message]]", [messages] if isinstance(first, Mapping) else messages
        )
        params = _spread(sampling_params, len(conversations))
        return self._run(
            [
                self.frontend.chat(self._next_id(), conversation, p)
                for conversation, p in zip(conversations, params, strict=True)
            ]
        )

    def stream(
        self, prompt: Prompt | Sequence[Message], sampling_params: SamplingParams | None = None
    ) -> Iterator[RequestOutput]:
        """Complete one prompt, or answer one conversation, giving each piece as it comes.

        Each output holds what is new. Closing the iterator early ends the request.
        """
        params = sampling_params or SamplingParams()
        if _is_conversation(prompt):
            messages = cast("Sequence[Message]", prompt)
            submission = self.frontend.chat(self._next_id(), messages, params)
        else:
            submission = self._submission(cast("Prompt", prompt), params)
        return self._stream(submission)

    def close(self) -> None:
        """Free the weights and the KV memory. Closing twice is fine."""
        if self._engine is not None:
            self._engine.core.close()
            self._engine = None

    def __enter__(self) -> "LLM":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _next_id(self) -> str:
        return f"request-{next(self._ids)}"

    def _as_prompts(self, prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
        if isinstance(prompts, str | Mapping):
            return [prompts]
        if prompts and all(isinstance(item, int) for item in prompts):
            return [cast("Sequence[int]", prompts)]
        return list(cast("Sequence[Prompt]", prompts))

    def _submission(self, prompt: Prompt, params: SamplingParams) -> Submission:
        content, salt = _take_prompt(prompt)
        return self.frontend.prompt(self._next_id(), content, params, cache_salt=salt)

    def _run(self, submissions: Sequence[Submission]) -> list[RequestOutput]:
        tokenizer = self.frontend.tokenizer
        ledgers = {s.request.request_id: RequestLedger(s, tokenizer) for s in submissions}
        for _ in self._steps(ledgers):
            pass
        return [ledger.so_far() for ledger in ledgers.values()]

    def _stream(self, submission: Submission) -> Iterator[RequestOutput]:
        ledger = RequestLedger(submission, self.frontend.tokenizer)
        yield from self._steps({ledger.request_id: ledger})

    def _steps(self, ledgers: Mapping[str, RequestLedger]) -> Iterator[RequestOutput]:
        """Drive the engine until these requests have ended; whatever happens, leave none in it."""
        core = self.engine.core
        try:
            for ledger in ledgers.values():
                core.add(ledger.submission.request)
            while not all(ledger.finished for ledger in ledgers.values()):
                for update in core.step():
                    ledger = ledgers[update.request_id]
                    news = ledger.apply(update)
                    if news is None:
                        continue
                    output, must_abort = news
                    if must_abort:
                        core.abort_choice(update.request_id, update.choice)
                    yield output
        finally:
            for request_id in ledgers:
                core.abort(request_id)


class AsyncLLM:
    """A model whose engine runs on its own thread, for many callers on an asyncio loop.

    Arguments as for LLM. Loading blocks: call AsyncLLM.create() from a running loop.
    """

    def __init__(
        self,
        model: str,
        *,
        allow_download: bool = True,
        progress: Callable[[float], None] | None = None,
        **options: Any,
    ) -> None:
        self._engine = start_engine(
            model, EngineOptions(**options), allow_download=allow_download, progress=progress
        )
        self._frontend = self._engine.frontend()
        self._streams = RequestStreams()
        self._ids = count()
        self._thread = EngineThread(self._engine.core, self._streams.deliver, self._streams.fail)

    @classmethod
    async def create(cls, model: str, **arguments: Any) -> "AsyncLLM":
        """Load on another thread, without blocking the loop."""
        return await asyncio.to_thread(lambda: cls(model, **arguments))

    @property
    def engine(self) -> Engine:
        """The engine: read its configuration and records, leave its core to the thread."""
        return self._engine

    @property
    def config(self) -> EngineConfig:
        """The settled configuration."""
        return self._engine.config

    @property
    def frontend(self) -> Frontend:
        """Tokenizer, chat template and request checks."""
        return self._frontend

    @property
    def alive(self) -> bool:
        """Whether requests can be taken."""
        return self._thread.alive

    @property
    def num_requests(self) -> int:
        """Requests in the engine, waiting or running, as of its latest step."""
        return self._engine.core.scheduler.num_requests

    @property
    def records(self) -> Sequence[StepRecord]:
        """What happened in the latest steps, oldest first."""
        return tuple(self._engine.core.records)

    def next_id(self) -> str:
        """An id that no request of this engine has had."""
        return f"request-{next(self._ids)}"

    def stream(self, submission: Submission) -> AsyncGenerator[RequestOutput, None]:
        """Run a submission made with `frontend`; each output holds what is new.

        Leaving the iterator (or cancelling the task) ends the request and frees its blocks.
        Raises EngineError if the engine stops.
        """
        return self._streams.stream(self._thread, submission, self.frontend.tokenizer)

    async def generate(
        self, prompt: Prompt | Sequence[Message], sampling_params: SamplingParams | None = None
    ) -> AsyncIterator[RequestOutput]:
        """Complete a prompt, or answer a conversation, giving each piece as it comes."""
        params = sampling_params or SamplingParams()
        if _is_conversation(prompt):
            messages = cast("Sequence[Message]", prompt)
            submission = self.frontend.chat(self.next_id(), messages, params)
        else:
            content, salt = _take_prompt(cast("Prompt", prompt))
            submission = self.frontend.prompt(self.next_id(), content, params, cache_salt=salt)
        async with aclosing(self.stream(submission)) as outputs:
            async for output in outputs:
                yield output

    async def close(self) -> None:
        """Stop the engine after the step in progress; open streams end with EngineError."""
        await asyncio.to_thread(self._thread.close)
        self._streams.fail(EngineError("the engine was closed"))


def _vector(output: RequestOutput) -> tuple[float, ...]:
    if output.pooled is None:
        raise EngineError(f"{output.request_id} failed: {output.outputs[0].error}")
    return output.pooled


def _is_conversation(prompt: object) -> bool:
    """Whether a prompt is a list of chat messages."""
    if isinstance(prompt, str | Mapping) or not isinstance(prompt, Sequence):
        return False
    return bool(prompt) and isinstance(prompt[0], Mapping) and "role" in prompt[0]


def _spread(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> Sequence[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise RequestError(
            f"there are {count} prompts, but {len(params)} sampling parameters",
            param="sampling_params",
        )
    return params
