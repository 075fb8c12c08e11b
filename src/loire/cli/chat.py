"""Talk with a model in the terminal."""

import argparse
import sys
from dataclasses import dataclass, field

from loire.api import LLM
from loire.base.errors import ConfigError, RequestError
from loire.base.outputs import RequestOutput
from loire.base.sampling import SamplingParams
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
  /quit            leave (or Ctrl-D)
  \"\"\"              begins and ends a message of several lines
  Ctrl-C           stops the answer that is being given"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `loire chat`."""
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL, help=MODEL_HELP)
    parser.add_argument("--system", help="system message")
    add_sampling_options(parser)
    add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit status."""
    params = sampling_params(args)
    # One conversation at a time: a small batch leaves the memory to the window.
    options = {"max_num_seqs": 4, **engine_options(args)}
    with load_llm(args.model, options) as llm:
        if not llm.frontend.has_chat_template:
            raise ConfigError(
                f"{args.model} has no chat template, so there is nothing to chat with: use "
                f"`loire run --raw`"
            )
        print(f"Chat with {args.model}. /help lists what you can do.")
        Conversation(llm, params, system=args.system).loop()
    return 0


@dataclass(slots=True)
class Conversation:
    """A dialogue and the commands that change it."""

    llm: LLM
    params: SamplingParams
    system: str | None = None
    stats: bool = False
    turns: list[dict[str, str]] = field(default_factory=list)

    def loop(self) -> None:
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
                self._answer()

    def _command(self, line: str) -> bool:
        """Carry out a command; False to leave."""
        name, _, rest = line.partition(" ")
        if name == "/quit":
            return False
        if name == "/reset":
            self.turns.clear()
        elif name == "/retry" and self._drop_answer():
            self._answer()
        elif name == "/undo":
            self._drop_answer()
            del self.turns[-1:]
        elif name == "/system":
            self.system = rest.strip() or None
            self.turns.clear()
        elif name == "/stats":
            self.stats = not self.stats
        else:
            print(HELP)
        return True

    def _drop_answer(self) -> bool:
        """Drop the last answer; False if there is no message to answer."""
        if self.turns and self.turns[-1]["role"] == "assistant":
            self.turns.pop()
        return bool(self.turns)

    def _answer(self) -> None:
        system = [{"role": "system", "content": self.system}] if self.system else []
        pieces: list[str] = []
        last: RequestOutput | None = None
        try:
            stream = self.llm.stream([*system, *self.turns], self.params)
        except RequestError as error:
            print(f"{error}\n(/reset starts over, /undo takes the last message back)")
            return
        num_tokens = 0
        try:
            for last in stream:
                completion = last.outputs[0]
                print(completion.text, end="", flush=True)
                pieces.append(completion.text)
                num_tokens += len(completion.token_ids)
                if completion.error is not None:
                    print(f"\nthe request failed: {completion.error}", end="")
        except KeyboardInterrupt:
            print(" [stopped]", end="")
        finally:
            stream.close()  # type: ignore[attr-defined]
        print()
        self.turns.append({"role": "assistant", "content": "".join(pieces)})
        if self.stats and last is not None:
            _print_stats(last, num_tokens)


def _print_stats(output: RequestOutput, num_tokens: int) -> None:
    timing = output.timing
    first = "" if timing.ttft_s is None else f", first token after {timing.ttft_s:.2f} s"
    speed = "" if not timing.tpot_s else f", {1 / timing.tpot_s:.1f} tokens/s"
    print(
        f"[{len(output.prompt_token_ids)} prompt tokens, {output.num_cached_tokens} of them "
        f"cached; {num_tokens} output tokens{first}{speed}]"
    )


def _read_message() -> str | None:
    """One message from the terminal; None at the end of input."""
    try:
        line = input("> ")
        if not line.startswith('"""'):
            return line
        lines = [line.removeprefix('"""')]
        while not lines[-1].endswith('"""'):
            lines.append(input(". "))
    except EOFError:
        return None
    except KeyboardInterrupt:
        print()
        return ""
    return "\n".join(lines).removesuffix('"""')


def _enable_line_editing() -> None:
    """Arrow keys and history, where the platform has readline."""
    if sys.stdin.isatty():
        try:
            import readline  # noqa: F401  importing it is what changes input()
        except ImportError:
            return
