"""List, load and unload the LoRA adapters of a server that runs."""

import argparse
import json
import os
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

from loire.base.errors import ConfigError, LoireError, RequestError
from loire.cli.columns import aligned

URL = "http://127.0.0.1:8000"
KEY_VARIABLES = ("LOIRE_ADMIN_KEY", "LOIRE_API_KEY")
TIMEOUT_S = 600.0
"""Most seconds until the server has read an adapter."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `loire adapters`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    show = actions.add_parser("list", help="the adapters that are served (what happens by default)")
    load = actions.add_parser("load", help="serve an adapter from below the server's --lora-root")
    unload = actions.add_parser("unload", help="serve an adapter no more")
    for action in (load, unload):
        action.add_argument("name", help="under which it is served")
    load.add_argument("path", help="its directory, below --lora-root of the server")
    load.add_argument(
        "--in-place", action="store_true", help="in the place of what has that name now"
    )
    load.add_argument("--pinned", action="store_true", help="its weights stay in memory")
    for action in (parser, show, load, unload):
        action.add_argument(
            "--url",
            default=URL if action is parser else argparse.SUPPRESS,
            help=f"the server [{URL}]; its key is in {KEY_VARIABLES[0]}",
        )


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit status."""
    url = args.url.rstrip("/").removesuffix("/v1")
    match args.action:
        case "load":
            body = {
                "lora_name": args.name,
                "lora_path": args.path,
                "load_inplace": args.in_place,
                "pinned": args.pinned,
            }
            print(_ask(f"{url}/v1/load_lora_adapter", body))
        case "unload":
            print(_ask(f"{url}/v1/unload_lora_adapter", {"lora_name": args.name}))
        case _:
            for line in _listed(f"{url}/admin/adapters"):
                print(line)
    return 0


def _listed(url: str) -> list[str]:
    """Lines about all of them. Raises as _ask(), and ConfigError if another server answers."""
    text = _ask(url)
    try:
        found = json.loads(text)
        entries = {
            one["name"]: [f"rank {one['rank']}", one["root"], *["pinned"] * one["pinned"]]
            for one in found["data"]
        }
        return [
            *aligned(entries),
            f"{len(entries)} adapters, {found['num_resident']} in memory "
            f"({found['num_bytes'] / 1e6:.1f} MB); {found['hits']} hits, {found['loads']} loads, "
            f"{found['evictions']} evictions",
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise _no_loire(url) from error


def _ask(url: str, body: dict[str, Any] | None = None) -> str:
    """What the server answers. Raises ConfigError if none does, RequestError if it refuses."""
    headers = {"content-type": "application/json"}
    key = next(filter(None, map(os.environ.get, KEY_VARIABLES)), None)
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(url, data, headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            text: str = answer.read().decode()
    except urllib.error.HTTPError as error:
        raise _refusal(error, url) from error
    except OSError as error:
        raise ConfigError(f"nothing answers at {url}: {error}") from error
    except (HTTPException, ValueError) as error:
        raise _no_loire(url) from error
    return text


def _refusal(error: urllib.error.HTTPError, url: str) -> LoireError:
    with error:
        if error.code == 401:
            return ConfigError(f"the server wants a key: set {KEY_VARIABLES[0]}")
        try:
            message: str = json.loads(error.read())["error"]["message"]
            # (What vLLM calls it stands in its own sentence, which the server says, too.)
            return RequestError(message.replace("set 'load_inplace' to True", "add --in-place"))
        except (ValueError, KeyError, TypeError, AttributeError):
            return _no_loire(url)


def _no_loire(url: str) -> ConfigError:
    return ConfigError(f"what answers at {url} is no Loire: give another --url")
