"""The real server over a scripted executor, which plays a model's part: for clients' tests.

Everything is real but the forward pass: the tokens of a recorded text come instead of sampled ones.
Whoever was told a tool's result answers with it; else the next of the calls is made.

    python -m support.scripted_server --calls '[["level", {"station": "Tours"}]]'
"""

import argparse
import asyncio
import json
import re
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from loire.base.cache_geometry import one_group
from loire.base.config import EngineConfig
from loire.base.errors import EngineError
from loire.base.executor import ComputedStep
from loire.base.messages import AdapterCounts
from loire.base.step import NewSequence, RowResult, StepPlan, StepRecord, StepResult, TokenLogprobs
from loire.checkpoint.open import open_checkpoint
from loire.engine.client import EngineClient
from loire.engine.core import EngineCore
from loire.engine.frontend import Frontend
from loire.engine.inbox import Inboxes
from loire.engine.thread import EngineThread
from loire.scheduling.presets import build_scheduler
from loire.server.access.options import AccessOptions
from loire.server.host.app import create_app
from loire.server.host.connections import GuardedProtocol
from loire.server.host.run import bind
from loire.server.serving.served import ServedModel
from loire.text.tokenizer import Tokenizer

NAME = "scripted"
WINDOW = 400_000
"""The tokens of the tiny model are bytes, and agents begin with 40 kB of instructions."""
TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)

Script = Callable[[str], str]
"""From a prompt, special tokens included, to what the model says."""
Call = tuple[str, dict[str, Any]]


def caller(calls: Sequence[Call], otherwise: Sequence[tuple[str, str]] = ()) -> Script:
    """Makes one call after the other, and answers with what each gave.

    otherwise: (expression, text): said where the expression is found in the prompt.
    """

    def say(prompt: str) -> str:
        for expression, text in otherwise:
            if re.search(expression, prompt):
                return text
        turns = _TURN.findall(prompt)
        results = [content for role, content in turns if role == "tool"]
        if turns[-1][0] == "tool":
            return f"It gave: {results[-1][:200]}"
        if len(results) < len(calls):
            name, arguments = calls[len(results)]
            call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
            return f"<tool_call>\n{call}\n</tool_call>"
        return "There is nothing to call."

    return say


class ScriptedExecutor:
    """Plays texts, token by token. See loire.base.executor."""

    def __init__(self, tokenizer: Tokenizer, script: Script) -> None:
        self._tokenizer = tokenizer
        self._script = script
        self._played: dict[int, tuple[int, list[int], NewSequence]] = {}
        """By sequence: tokens of its prompt, and those to play."""

    def launch(self, plan: StepPlan) -> ComputedStep:
        """One step."""
        for seq_id in plan.ended:
            self._played.pop(seq_id, None)
        for new in plan.new_sequences:
            text = self._script(self._tokenizer.decode(new.prompt_token_ids, False))
            tokens = [*self._tokenizer.encode(text, False), self._tokenizer.eos_token_ids[0]]
            self._played[new.seq_id] = (len(new.prompt_token_ids), tokens, new)
        rows = []
        for row in plan.rows:
            token_ids: tuple[int, ...] = ()
            logprobs: tuple[TokenLogprobs, ...] = ()
            if row.samples:
                num_prompt, tokens, new = self._played[row.seq_id]
                place = row.start + len(row.token_ids) - num_prompt
                # Whoever wants more than there is gets the end once more.
                token_ids = (tokens[min(place, len(tokens) - 1)],)
                if new.params.logprobs is not None:
                    logprobs = (TokenLogprobs(token_ids, (-0.5,), 1),)
            rows.append(
                RowResult(row.seq_id, epoch=row.epoch, token_ids=token_ids, logprobs=logprobs)
            )
        return ComputedStep(StepResult(plan.step_id, tuple(rows), 0.0))


class ScriptedLink(EngineThread):
    """An engine's thread that says of itself what servers ask."""

    num_restarts = 0
    adapters = AdapterCounts()

    @property
    def is_ready(self) -> bool:
        return self.alive

    @property
    def num_waiting(self) -> int:
        return len(self.core.scheduler.waiting)

    @property
    def num_waiting_sequences(self) -> int:
        return self.num_waiting

    @property
    def num_waiting_tokens(self) -> int:
        return sum(len(sequence.tokens) for sequence in self.core.scheduler.waiting)

    @property
    def blocks_in_use(self) -> int:
        return 0


class ScriptedEngine(EngineClient[ScriptedLink]):
    """An engine client over the script."""

    def watch_steps(self, listener: Callable[[StepRecord], None]) -> Callable[[], None]:
        return lambda: None

    def end_all(self, error: EngineError) -> None:
        self.fail_all(error)

    async def close(self) -> None:
        self.link.close()


def scripted_engine(model: Path, script: Script) -> ScriptedEngine:
    config = EngineConfig(
        model=NAME,
        dtype="float32",
        kv_cache_dtype="float32",
        device="cpu",
        max_model_len=WINDOW,
        max_num_seqs=64,
        max_num_batched_tokens=65536,
        geometry=one_group(16, 64),
        num_blocks=4 * WINDOW // 16,
        enable_prefix_caching=True,
        policy="paged",
        reserve="max-tokens",
        pipeline_depth=1,
        seed=None,
    )
    frontend = Frontend(open_checkpoint(model), WINDOW)
    inboxes = Inboxes()
    core = EngineCore(
        build_scheduler(config),
        ScriptedExecutor(frontend.tokenizer, script),
        form_ready=lambda form: True,
    )
    link = ScriptedLink(core, inboxes.deliver, inboxes.fail)
    engine = ScriptedEngine(link, inboxes, frontend, config)
    weakref.finalize(engine, link.close)
    return engine


def with_template(model: Path, target: Path) -> Path:
    """A copy of the tiny model with the script's template."""
    shutil.copytree(model, target)
    config = json.loads((target / "tokenizer_config.json").read_text())
    (target / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    return target


@contextmanager
def scripted_server(model: Path, script: Script, *, port: int = 0) -> Iterator[str]:
    """The address of the server, on a thread. model: of with_template()."""
    listener = bind("127.0.0.1", port)
    with tempfile.TemporaryDirectory() as data:
        served = ServedModel([NAME], scripted_engine(model, script))
        access = AccessOptions().settle("127.0.0.1")
        app = create_app(served, access, Path(data))
        config = uvicorn.Config(
            app, log_config=None, lifespan="on", http=GuardedProtocol, ws="none"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
            listener.close()


def main() -> None:
    """Serve until a signal comes."""
    from support.tiny_models import save_tiny_llama

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--calls", type=json.loads, default=[])
    parser.add_argument("--otherwise", type=json.loads, default=[])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = with_template(save_tiny_llama(Path(folder) / "tiny"), Path(folder) / NAME)
        with scripted_server(model, caller(args.calls, args.otherwise), port=args.port) as url:
            print(url, flush=True)
            asyncio.run(asyncio.Event().wait())


if __name__ == "__main__":
    main()
