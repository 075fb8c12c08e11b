"""Answer one prompt, streamed to the terminal."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict

from loire.base.errors import RequestError
from loire.base.outputs import RequestOutput
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
from loire.cli.piped import prompt_with_input

_EPILOG = """\
  loire run "Why is the sky blue?"
  git diff | loire run "Write a commit message"
  loire run - < question.txt
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `loire run`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "prompt", nargs="?", help="the prompt; text that is piped in comes before it"
    )
    parser.add_argument("-m", "--model", default=DEFAULT_MODEL, help=MODEL_HELP)
    parser.add_argument("--system", help="a system message before the prompt")
    parser.add_argument(
        "--raw", action="store_true", help="continue the text itself, without the chat template"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on stdout, everything else on stderr"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress, no plan")
    add_form_options(parser)
    add_tool_options(parser)
    add_sampling_options(parser)
    add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit status."""
    prompt = prompt_with_input(args.prompt)
    params = sampling_params(args, structured_outputs=structured_outputs(args))
    with load_llm(args.model, engine_options(args), quiet=args.quiet) as llm:
        raw = args.raw or not llm.frontend.has_chat_template
        for flag in ("system", "tools"):
            if raw and getattr(args, flag):
                raise RequestError(f"--{flag} needs a chat template and no --raw", param=flag)
        if raw:
            outputs = llm.stream(prompt, params)
        else:
            system = [{"role": "system", "content": args.system}] if args.system else []
            messages = [*system, {"role": "user", "content": prompt}]
            outputs = llm.stream(messages, params, **tool_options(args))
        if args.json:
            print(json.dumps(_collect(outputs), ensure_ascii=False))
        else:
            _show(outputs)
    return 0


def _show(outputs: Iterator[RequestOutput]) -> None:
    """The answer on stdout, each call a line of JSON; thoughts on stderr."""
    for output in outputs:
        completion = output.outputs[0]
        print(completion.reasoning, end="", file=sys.stderr, flush=True)
        print(completion.text, end="", flush=True)
        for call in completion.tool_calls:
            print(json.dumps(asdict(call), ensure_ascii=False))
        if completion.finish_reason == "error":
            raise RequestError(f"the request failed: {completion.error}")
    print()


def _collect(outputs: Iterator[RequestOutput]) -> dict[str, object]:
    """The whole answer as one JSON-ready object."""
    text: list[str] = []
    reasoning: list[str] = []
    calls: list[dict[str, str]] = []
    token_ids: list[int] = []
    last: RequestOutput | None = None
    for last in outputs:
        text.append(last.outputs[0].text)
        reasoning.append(last.outputs[0].reasoning)
        calls += map(asdict, last.outputs[0].tool_calls)
        token_ids += last.outputs[0].token_ids
    assert last is not None, "a request gives at least one output"
    completion = last.outputs[0]
    if completion.finish_reason == "error":
        raise RequestError(f"the request failed: {completion.error}")
    return {
        "text": "".join(text),
        "reasoning": "".join(reasoning),
        "tool_calls": calls,
        "token_ids": token_ids,
        "finish_reason": completion.finish_reason,
        "usage": {
            "prompt_tokens": len(last.prompt_token_ids),
            "cached_tokens": last.num_cached_tokens,
            "completion_tokens": len(token_ids),
        },
        "timing": {"ttft_s": last.timing.ttft_s, "tpot_s": last.timing.tpot_s},
    }
