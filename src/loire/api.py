"""What users import: `LLM` waits in the caller's thread, `AsyncLLM` is its twin for asyncio.

    from loire import LLM, SamplingParams

    llm = LLM("smollm2")
    [output] = llm.generate("The capital of France is", SamplingParams(temperature=0))
    print(output.outputs[0].text)

Both are a face of the same client (loire.engine.client); the engine computes on a thread of this
process. Names and arguments follow vLLM's where it has them.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing, closing
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from loire.base.config import EngineConfig, EngineOptions
from loire.base.errors import EngineError, RequestError
from loire.base.lora import LoRARequest
from loire.base.outputs import RequestOutput
from loire.base.sampling import Pooling, SamplingParams
from loire.base.step import StepRecord
from loire.engine.adapters import AdapterNames, NamedAdapter
from loire.engine.chat_options import ChatOptions, ToolChoice, Tools
from loire.engine.client import EngineClient
from loire.engine.dialogue import Turn, begin_turn
from loire.engine.frontend import Frontend
from loire.engine.prompts import (
    Lora,
    Messages,
    Prompt,
    as_conversations,
    as_prompts,
    content_and_salt,
    is_conversation,
    spread_lora,
    spread_params,
)
from loire.engine.requests import Origin, Submission
from loire.engine.start import Engine, start_engine
from loire.engine.thread import EngineThread, client_of
from loire.text.effort import Effort


class _LocalEngine:
    """A model and its engine, on a thread of this process: what LLM and AsyncLLM share.

    model: a name of the store ("smollm2"), a directory, a GGUF file, or a hub id. The options are
    those of EngineOptions. Frees its memory when it is closed, or deleted.

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
        given = EngineOptions(**options)
        engine = start_engine(model, given, allow_download=allow_download, progress=progress)
        self._opened: tuple[Engine, EngineClient[EngineThread]] | None = engine, client_of(engine)
        description = engine.checkpoint.description
        self._adapters = AdapterNames(description, engine.adapters.announce)
        self._adapters.limit(given)

    @property
    def engine(self) -> Engine:
        """The engine: read what was settled, leave its core to its thread.

        Raises EngineError after close(), like all that needs the engine.
        """
        return self._open[0]

    @property
    def config(self) -> EngineConfig:
        """The settled configuration."""
        return self.engine.config

    @property
    def frontend(self) -> Frontend:
        """Tokenizer, chat template and request checks."""
        return self._client.frontend

    @property
    def adapters(self) -> Sequence[NamedAdapter]:
        """Those that load_adapter() has given names."""
        return self._adapters.named

    def load_adapter(
        self,
        lora_name: str,
        lora_path: str | Path,
        *,
        load_inplace: bool = False,
        pinned: bool = False,
    ) -> NamedAdapter:
        """Give an adapter a name, which lora_request= takes from now on.

        load_inplace: the name may be another's; requests that run go on with what they began with.
        pinned: its weights are read at once and stay in memory. Raises RequestError if the name is
        no name or taken, ModelError if the adapter cannot be used.
        """
        return self._adapters.load(
            lora_name, Path(lora_path), load_inplace=load_inplace, pinned=pinned
        )

    def unload_adapter(self, lora_name: str) -> None:
        """The name is nobody's from now on; requests that run go on. Raises ModelNotFoundError if
        it was nobody's before."""
        self._adapters.unload(lora_name)

    @property
    def alive(self) -> bool:
        """Whether requests can be taken."""
        return self._opened is not None and self._client.link.alive

    @property
    def num_requests(self) -> int:
        """Requests in the engine, waiting or running, as of its latest step."""
        return self._client.link.num_requests

    @property
    def records(self) -> Sequence[StepRecord]:
        """What happened in the latest steps, oldest first."""
        return self._client.link.records

    @property
    def _open(self) -> tuple[Engine, EngineClient[EngineThread]]:
        if self._opened is None:
            raise EngineError(f"this {type(self).__name__} was closed")
        return self._opened

    @property
    def _client(self) -> EngineClient[EngineThread]:
        return self._open[1]

    def _close(self) -> None:
        """End the thread after the step in progress; open streams end with EngineError."""
        if self._opened is None:
            return
        engine, client = self._opened
        self._opened = None
        client.link.close()
        engine.close()
        client.fail_all(EngineError("the engine was closed"))

    def _prompt(
        self, prompt: Prompt, params: SamplingParams | None, lora: LoRARequest | str | None
    ) -> Submission:
        client = self._client
        content, salt = content_and_salt(prompt)
        origin = self._origin(lora, salt)
        return client.frontend.prompt(
            client.next_id(), content, params or SamplingParams(), origin=origin
        )

    def _origin(self, lora: LoRARequest | str | None, salt: str = "") -> Origin:
        return Origin(cache_salt=salt, adapter="" if lora is None else self._adapters.use(lora))

    def _turn(
        self,
        messages: Messages,
        params: SamplingParams | None,
        options: ChatOptions,
        lora: LoRARequest | str | None,
    ) -> Turn:
        """A conversation as a request, and how its answer is to be read. Raises RequestError."""
        client = self._client
        return begin_turn(
            client.frontend,
            client.next_id(),
            options.conversation(messages),
            options.params(params or SamplingParams()),
            origin=self._origin(lora),
        )


class LLM(_LocalEngine):
    """A model and an engine in this process; calls wait until their answers are complete.

    Several threads may call it at once; their requests share the engine. Arguments and errors as
    for its base.
    """

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        lora_request: Lora = None,
    ) -> list[RequestOutput]:
        """Complete one or many prompts together; outputs come in the prompts' order.

        lora_request: the adapter of all prompts, or one (or None) for each. Raises RequestError
        before anything is computed if any prompt cannot be accepted, ModelError for an adapter that
        cannot be used.
        """
        many = as_prompts(prompts)
        each = spread_params(sampling_params, len(many))
        return self._run(list(map(self._prompt, many, each, spread_lora(lora_request, len(many)))))

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
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
        response_format: Mapping[str, Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        reasoning_effort: Effort | None = None,
        lora_request: Lora = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or many, through the model's chat template.

        The options are OpenAI's. In the outputs, `text` is what the model says, `reasoning` what
        it thought before, and `tool_calls` what it calls. reasoning_effort says how much it shall
        think; a model that knows no degrees takes any but "none" as it thinks anyway. Raises
        RequestError.
        """
        options = ChatOptions(
            tools, tool_choice, response_format, chat_template_kwargs, reasoning_effort
        )
        many = as_conversations(messages)
        each = spread_params(sampling_params, len(many))
        loras = spread_lora(lora_request, len(many))
        triples = zip(many, each, loras, strict=True)
        turns = [self._turn(one, params, options, lora) for one, params, lora in triples]
        outputs = self._run([turn.submission for turn in turns])
        return [turn.outputs().read(output) for turn, output in zip(turns, outputs, strict=True)]

    def stream(
        self,
        prompt: Prompt | Messages,
        sampling_params: SamplingParams | None = None,
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
        response_format: Mapping[str, Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        reasoning_effort: Effort | None = None,
        lora_request: LoRARequest | str | None = None,
    ) -> Generator[RequestOutput, None, None]:
        """Complete one prompt, or answer one conversation as chat() does, giving each piece as it
        comes.

        Each output holds what is new. Closing the iterator early ends the request.
        """
        options = ChatOptions(
            tools, tool_choice, response_format, chat_template_kwargs, reasoning_effort
        )
        client = self._client
        if is_conversation(prompt):
            turn = self._turn(cast("Messages", prompt), sampling_params, options, lora_request)
            return _read(turn, client.run(client.ledgers([turn.submission])))
        if options.given:
            raise RequestError(
                "tools, response_format, chat_template_kwargs and reasoning_effort are for "
                "conversations: give a list of messages instead of a prompt",
                param="prompt",
            )
        submission = self._prompt(cast("Prompt", prompt), sampling_params, lora_request)
        return client.run(client.ledgers([submission]))

    def close(self) -> None:
        """Free the weights and the KV memory. Closing twice is fine."""
        self._close()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, submissions: Sequence[Submission]) -> list[RequestOutput]:
        client = self._client
        ledgers = client.ledgers(submissions, keep=True)
        for _ in client.run(ledgers, at_once=False):
            pass
        return [ledger.so_far() for ledger in ledgers]


class AsyncLLM(_LocalEngine):
    """A model and an engine in this process, for many callers on asyncio loops.

    Arguments and errors as for its base. Loading blocks: call AsyncLLM.create() from a running
    loop.
    """

    @classmethod
    async def create(cls, model: str, **arguments: Any) -> "AsyncLLM":
        """Load on another thread, without blocking the loop."""
        return await asyncio.to_thread(lambda: cls(model, **arguments))

    def next_id(self) -> str:
        """An id that no request of this engine has had."""
        return self._client.next_id()

    def stream(self, submission: Submission) -> AsyncGenerator[RequestOutput, None]:
        """Run a submission made with `frontend`; each output holds what is new.

        Leaving the iterator (or cancelling the task) ends the request and frees its blocks.
        Raises EngineError if the engine stops.
        """
        return self._client.stream(submission)

    async def generate(
        self,
        prompt: Prompt | Messages,
        sampling_params: SamplingParams | None = None,
        *,
        lora_request: LoRARequest | str | None = None,
    ) -> AsyncIterator[RequestOutput]:
        """Complete a prompt, or answer a conversation, giving each piece as it comes."""
        if is_conversation(prompt):
            messages = cast("Messages", prompt)
            outputs = self.chat(messages, sampling_params, lora_request=lora_request)
        else:
            submission = self._prompt(cast("Prompt", prompt), sampling_params, lora_request)
            outputs = self.stream(submission)
        async with aclosing(outputs):
            async for output in outputs:
                yield output

    async def chat(
        self,
        messages: Messages,
        sampling_params: SamplingParams | None = None,
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
        response_format: Mapping[str, Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        reasoning_effort: Effort | None = None,
        lora_request: LoRARequest | str | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Answer a conversation as LLM.chat() does, giving each piece as it comes."""
        options = ChatOptions(
            tools, tool_choice, response_format, chat_template_kwargs, reasoning_effort
        )
        turn = self._turn(messages, sampling_params, options, lora_request)
        reader = turn.outputs()
        async with aclosing(self.stream(turn.submission)) as outputs:
            async for output in outputs:
                yield reader.read(output)

    async def close(self) -> None:
        """Stop the engine after the step in progress; open streams end with EngineError."""
        await asyncio.to_thread(self._close)


def _read(
    turn: Turn, outputs: Generator[RequestOutput, None, None]
) -> Generator[RequestOutput, None, None]:
    reader = turn.outputs()
    with closing(outputs):
        for output in outputs:
            yield reader.read(output)


def _vector(output: RequestOutput) -> tuple[float, ...]:
    if output.pooled is None:
        raise EngineError(f"{output.request_id} failed: {output.outputs[0].error}")
    return output.pooled
