"""List, load and unload the LoRA adapters of a server that runs."""

import argparse
import json
import os
import urllib.error
import urllib.request
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
            _show(json.loads(_ask(f"{url}/admin/adapters")))
    return 0


def _show(found: dict[str, Any]) -> None:
    entries = {
        one["name"]: [f"rank {one['rank']}", one["root"], *(["pinned"] if one["pinned"] else [])]
        for one in found["data"]
    }
    for line in aligned(entries):
        print(line)
    print(
        f"{len(entries)} adapters, {found['num_resident']} in memory "
        f"({found['num_bytes'] / 1e6:.1f} MB); {found['hits']} hits, {found['loads']} loads, "
        f"{found['evictions']} evictions"
    )


def _ask(url: str, body: dict[str, Any] | None = None) -> str:
    """What the server answers. Raises ConfigError if none does, RequestError if it refuses."""
    headers = {"content-type": "application/json"}
    key = next(filter(None, map(os.environ.get, KEY_VARIABLES)), None)
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            text: str = answer.read().decode()
    except urllib.error.HTTPError as error:
        raise _refusal(error, url) from error
    except (OSError, urllib.error.URLError) as error:
        raise ConfigError(f"nothing answers at {url}: {error}") from error
    return text


def _refusal(error: urllib.error.HTTPError, url: str) -> LoireError:
    with error:
        if error.code == 401:
            return ConfigError(f"the server wants a key: set {KEY_VARIABLES[0]}")
        try:
            return RequestError(json.loads(error.read())["error"]["message"])
        except (ValueError, KeyError, TypeError):
            return ConfigError(f"what answers at {url} is no Loire: give another --url")
