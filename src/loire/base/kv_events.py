"""Where an engine tells which KV blocks can be found in it: the words of vLLM's
--kv-events-config."""

import json
from dataclasses import dataclass
from typing import Any

from loire.base.errors import ConfigError

DEFAULT_ENDPOINT = "tcp://127.0.0.1:5557"
"""vLLM's port, on this machine only: events hold the tokens of prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KVEvents:
    """A ZeroMQ publisher.

    Attributes:
        endpoint: that subscribers connect to; with a * or an @ in it, or an address, it is bound.
        topic: in front of each message, such as kv@POD@MODEL for llm-d's router.
        hwm: messages that wait for a slow subscriber before it misses some.
    """

    endpoint: str = DEFAULT_ENDPOINT
    topic: str = ""
    hwm: int = 100_000


_WITHOUT_EFFECT = ("buffer_steps", "max_queue_size")
"""Of vLLM's replays and its queue between threads, which there are not here."""


def parse_kv_events(text: str) -> KVEvents | None:
    """From the JSON of vLLM's flag; None if it switches them off. Raises ConfigError."""
    try:
        given: Any = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--kv-events-config is no JSON: {error}") from error
    if not isinstance(given, dict):
        raise ConfigError(f"--kv-events-config is a JSON object, not {text[:80]}")
    enabled = given.pop("enable_kv_cache_events", True)
    publisher = given.pop("publisher", "zmq")
    for name in _WITHOUT_EFFECT:
        given.pop(name, None)
    if given.pop("replay_endpoint", None) is not None:
        raise ConfigError("--kv-events-config: replay_endpoint is not supported")
    if enabled is False or publisher == "null":
        return None
    if enabled is not True or publisher != "zmq":
        raise ConfigError(
            f"--kv-events-config: the publisher is zmq or null, not {str(publisher)[:80]!r}, and "
            f"enable_kv_cache_events true or false"
        )
    kinds = {"endpoint": str, "topic": str, "hwm": int}
    for name, value in given.items():
        if name not in kinds:
            raise ConfigError(
                f"--kv-events-config has no {name[:80]!r}; it has endpoint, topic, hwm, publisher "
                f"and enable_kv_cache_events"
            )
        if type(value) is not kinds[name]:
            raise ConfigError(f"--kv-events-config: {name} is a {kinds[name].__name__}")
    if given.get("hwm", 1) < 1:
        raise ConfigError(f"--kv-events-config: hwm must be at least 1, but is {given['hwm']}")
    return KVEvents(**given)
