"""Start a coding agent over a model of your own."""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from loire.base.errors import ConfigError
from loire.base.python_process import python_command, python_environment
from loire.checkpoint.store import loire_home
from loire.cli.launch_clients import CLIENTS, KEY_VARIABLE, Client, Setup, Target
from loire.cli.options import DEFAULT_MODEL, MODEL_HELP

URL = "http://127.0.0.1:8000"
ASK_S = 5.0
POLL_S = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `loire launch`."""
    parser.add_argument("client", choices=tuple(CLIENTS), help="the agent")
    parser.add_argument(
        "-m", "--model", help=f"{MODEL_HELP}; a running server's, if it is left out"
    )
    parser.add_argument(
        "--url", help=f"a server that runs [{URL}; where none does, one is started]"
    )
    parser.add_argument(
        "--print", action="store_true", help="print what would be done, and do nothing"
    )
    parser.epilog = "What follows -- is for the client: loire launch codex -- exec 'Fix the test'"


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit status."""
    client = CLIENTS[args.client]
    folder = loire_home() / "launch"
    found = _running(args.url or URL, args.model)
    if found is None and args.url is not None:
        raise ConfigError(
            f"nothing answers at {args.url}: start a server there, or leave --url out"
        )
    if args.print:
        model = args.model or DEFAULT_MODEL
        target = found or Target(url=URL, model=model, window=_window(model), key=_key())
        if found is None:
            print(f"loire serve {shlex.quote(model)} &")
            print(f"until curl -sf {URL}/health/ready > /dev/null; do sleep 1; done")
        _print(client.setup(target, folder), args.passed_on)
        return 0
    if shutil.which(args.client) is None:
        raise ConfigError(f"{args.client} is not installed: {client.install}")
    if found is not None:
        return _start(args.client, client, found, folder, args.passed_on)
    with _server(args.model or DEFAULT_MODEL, folder) as target:
        return _start(args.client, client, target, folder, args.passed_on)


def _start(name: str, client: Client, target: Target, folder: Path, arguments: list[str]) -> int:
    window = f"{target.window:,} tokens"
    note = f" ({client.note})" if client.note else ""
    print(
        f"{name} over {target.model} at {target.url}, a window of {window}{note}", file=sys.stderr
    )
    if target.window < 2 * client.needs:
        print(
            f"that is little: {name} begins with about {client.needs:,} tokens of instructions and "
            f"tools; take a model with a longer window, or give more memory to this one",
            file=sys.stderr,
        )
    setup = client.setup(target, folder)
    for path, text in setup.files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    command = [*setup.command, *arguments]
    try:
        return subprocess.run(
            command, env={**os.environ, **setup.variables}, check=False
        ).returncode
    except KeyboardInterrupt:
        return 130


def _print(setup: Setup, arguments: list[str]) -> None:
    for path, text in setup.files.items():
        print(f"mkdir -p {shlex.quote(str(path.parent))}")
        print(f"echo {shlex.quote(text)} > {shlex.quote(str(path))}")
    for name, value in setup.variables.items():
        # A key is not for the screen.
        shown = f"${KEY_VARIABLE}" if value == os.environ.get(KEY_VARIABLE) else shlex.quote(value)
        print(f"export {name}={shown}")
    print(shlex.join([*setup.command, *arguments]))


def _key() -> str:
    return os.environ.get(KEY_VARIABLE) or "none"


def _running(url: str, model: str | None) -> Target | None:
    """The server at an address, if one answers there. Raises ConfigError if it is another's, still
    loads, or does not serve the model."""
    url = url.rstrip("/").removesuffix("/v1")
    try:
        request = urllib.request.Request(f"{url}/v1/models", headers={"x-api-key": _key()})
        with urllib.request.urlopen(request, timeout=ASK_S) as answer:
            models = json.load(answer)["data"]
            windows = {entry["id"]: entry["max_model_len"] for entry in models}
    except urllib.error.HTTPError as error:
        with error:
            reason = {401: f"wants a key: set {KEY_VARIABLE}", 503: "still loads its model"}
            raise ConfigError(
                f"the server at {url} {reason.get(error.code, f'answers {error.code}')}"
            ) from error
    except (OSError, urllib.error.URLError):
        return None
    except (HTTPException, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"what answers at {url} is no Loire: give another --url") from error
    name = model or next(iter(windows))
    if name not in windows:
        raise ConfigError(
            f"the server at {url} serves {', '.join(windows)}, not {name}: stop it, or leave "
            f"--model out"
        )
    return Target(url=url, model=name, window=windows[name], key=_key())


def _window(model: str) -> int:
    """What the model's files say."""
    from loire.checkpoint.open import open_checkpoint
    from loire.checkpoint.store import resolve_model

    return open_checkpoint(resolve_model(model, allow_download=False)).description.max_positions


@contextmanager
def _server(model: str, folder: Path) -> Iterator[Target]:
    """A server of our own, while the client runs. Its log is a file."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "serve.log"
    print(f"starting loire serve {model} (log: {log})", file=sys.stderr)
    # Where agents work there is code of others: none of it is for the server.
    command = python_command("loire", "serve", model, "--port", "0")
    with log.open("wb") as output:
        # In a session of its own: Ctrl-C in the client is not meant for it.
        process = subprocess.Popen(
            command, stderr=output, start_new_session=True, env=python_environment()
        )
    try:
        yield _when_ready(process, log, model)
    finally:
        process.terminate()
        process.wait()


def _when_ready(process: "subprocess.Popen[bytes]", log: Path, model: str) -> Target:
    """The server, once it takes requests. Raises ConfigError if it ends before."""
    while process.poll() is None:
        text = log.read_text(encoding="utf-8", errors="replace")
        if "ready after" in text:
            url = text.partition("listening on ")[2].split(",")[0]
            found = _running(url, model)
            if found is not None:
                return found
        time.sleep(POLL_S)
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    raise ConfigError(f"the server has stopped: {''.join(last)}")
