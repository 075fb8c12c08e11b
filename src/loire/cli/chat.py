"""Talk with a model in the terminal."""

import argparse
import sys
from dataclasses import dataclass, field
from typing import Any

from loire.api import LLM
from loire.base.errors import ConfigError, RequestError
from loire.base.outputs import RequestOutput, ToolCall
from loire.base.sampling import SamplingParams
from loire.cli.form_options import (
    add_form_options,
    add_tool_options,
    structured_outputs,
    tool_options,
)
from loire.cli.loading import load_llm
from loire.cli.options import (
    DEFAULT_MODEL,
    MODEL_HELP,
    add_engine_options,
    add_sampling_options,
    engine_options,
    sampling_params,
)

HELP = """\
  /help            this list
  /reset           forget the conversation
  /retry           answer the last message again
  /undo            take back the last message and its answer
  /system TEXT     set the system message (and start over)
  /stats           tokens and speed after each answer, on or off
  /exit, /quit     leave (or Ctrl-D)
  \"\"\"              begins and ends a message of several lines
  Ctrl-C           stops the answer that is being given, or drops the line being written"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `loire chat`."""
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL, help=MODEL_HELP)
    parser.add_argument("--system", help="system message")
    add_form_options(parser)
    add_tool_options(parser)
    add_sampling_options(parser)
    add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit status."""
    params = sampling_params(args, structured_outputs=structured_outputs(args))
    tools = tool_options(args)
    # One conversation at a time: a small batch leaves the memory to the window.
    options = {"max_num_seqs": 4, **engine_options(args)}
    with load_llm(args.model, options) as llm:
        if not llm.frontend.has_chat_template:
            raise ConfigError(
                f"{args.model} has no chat template, so there is nothing to chat with: use "
                f"`loire run --raw`"
            )
        print(f"Chat with {args.model}. /help lists what you can do.")
        ChatLoop(llm, params, args.system, options=tools).run()
    return 0


@dataclass(slots=True)
class ChatLoop:
    """A dialogue and the commands that change it."""

    llm: LLM
    params: SamplingParams
    system: str | None = None
    stats: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    """Of LLM.stream: the tools."""
    turns: list[dict[str, Any]] = field(default_factory=list)

    def run(self) -> None:
        """Read and answer until the end of input."""
        _enable_line_editing()
        while True:
            message = _read_message()
            if message is None:
                print()
                return
            if message.startswith("/"):
                if not self._command(message):
                    return
            elif message.strip():
                self.turns.append({"role": "user", "content": message})
                while self._answer():
                    pass

    def _command(self, line: str) -> bool:
        """Carry out a command; False to leave."""
        name, _, rest = line.partition(" ")
        if name in ("/exit", "/quit"):
            return False
        if name == "/reset":
            self.turns.clear()
            print("(the conversation starts over)")
        elif name == "/retry":
            if not self._drop_answer():
                print("(there is no message to answer again)")
            while self.turns and self._answer():
                pass
        elif name == "/undo":
            self._drop_answer()
            del self.turns[-1:]
        elif name == "/system":
            self.system = rest.strip() or None
            self.turns.clear()
            print("(the conversation starts over)")
        elif name == "/stats":
            self.stats = not self.stats
            print(f"(statistics are {'on' if self.stats else 'off'})")
        else:
            print(HELP if name == "/help" else f"{name} is no command:\n{HELP}")
        return True

    def _drop_answer(self) -> bool:
        """Drop what followed the last message; False if there is no message to answer."""
        while self.turns and self.turns[-1]["role"] != "user":
            self.turns.pop()
        return bool(self.turns)

    def _answer(self) -> bool:
        """Give an answer. Whether it called tools whose results were typed: then comes another."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        try:
            stream = self.llm.stream([*system, *self.turns], self.params, **self.options)
        except RequestError as error:
            print(f"{error}\n(/reset starts over, /undo takes the last message back)")
            return False
        answer = _Printed()
        try:
            for output in stream:
                answer.add(output)
        except KeyboardInterrupt:
            print(" [stopped]", end="")
        finally:
            stream.close()
        print()
        self.turns.append(answer.message())
        if self.stats and answer.last is not None:
            _print_stats(answer.last, answer.num_tokens)
        return bool(answer.calls) and all(map(self._take_result, answer.calls))

    def _take_result(self, call: ToolCall) -> bool:
        """What a tool gave, from whoever sits there; False at the end of input."""
        result = _read_message(f"result of {call.name}> ")
        self.turns.append({"role": "tool", "tool_call_id": call.id, "content": result or ""})
        return result is not None


@dataclass(slots=True)
class _Printed:
    """An answer that is printed as it comes."""

    pieces: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    num_tokens: int = 0
    last: RequestOutput | None = None

    def add(self, output: RequestOutput) -> None:
        """Print what is new."""
        self.last = output
        completion = output.outputs[0]
        if completion.reasoning:
            print(_faint(completion.reasoning), end="", flush=True)
        print(completion.text, end="", flush=True)
        for call in completion.tool_calls:
            print(f"\n[calls {call.name}: {call.arguments}]", end="", flush=True)
        if completion.error is not None:
            print(f"\nthe request failed: {completion.error}", end="")
        self.pieces.append(completion.text)
        self.calls += completion.tool_calls
        self.num_tokens += len(completion.token_ids)

    def message(self) -> dict[str, Any]:
        """The answer as a turn of the conversation."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.pieces)}
        if self.calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in self.calls
            ]
        return message


def _faint(text: str) -> str:
    """Thoughts, paler than the answer on a terminal."""
    return f"\x1b[2m{text}\x1b[22m" if sys.stdout.isatty() else text


def _print_stats(output: RequestOutput, num_tokens: int) -> None:
    timing = output.timing
    first = "" if timing.ttft_s is None else f", first token after {timing.ttft_s:.2f} s"
    speed = "" if not timing.tpot_s else f", {1 / timing.tpot_s:.1f} tokens/s"
    print(
        f"[{len(output.prompt_token_ids)} prompt tokens, {output.num_cached_tokens} of them "
        f"cached; {num_tokens} output tokens{first}{speed}]"
    )


def _read_message(prompt: str = "> ") -> str | None:
    """One message from the terminal; None at the end of input."""
    try:
        line = input(prompt)
        if not line.startswith('"""'):
            return line
        lines = [line.removeprefix('"""')]
        while not lines[-1].endswith('"""'):
            lines.append(input(". "))
    except EOFError:
        return None
    except KeyboardInterrupt:
        print("\n(/exit or Ctrl-D leaves)")
        return ""
    return "\n".join(lines).removesuffix('"""')


def _enable_line_editing() -> None:
    """Arrow keys and history, where the platform has readline."""
    if sys.stdin.isatty():
        try:
            import readline  # noqa: F401  importing it is what changes input()
        except ImportError:
            return
