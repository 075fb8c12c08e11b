"""The one table of routes: what guards, limits and error forms must know of a path."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

from starlette.routing import compile_path

Dialect: TypeAlias = Literal["openai", "anthropic"]
OpenTo: TypeAlias = Literal["everybody", "scrapers", "keys", "admins"]

MAX_BODY_BYTES = 16 * 2**20

MAX_FILE_BYTES = 200 * 2**20
"""Of an upload; OpenAI's limit for the input of a batch."""

_MAX_UPLOAD_BYTES = MAX_FILE_BYTES + 2**16
"""Of a form around a file, which goes to the disk while it arrives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What holds for a path, whatever the method.

    Attributes:
        dialect: whose form errors have, and what keeps a stream alive.
        generates: a POST makes requests to the engine, and so waits in its queue.
        batchable: lines of a batch may ask for it.
        max_body_bytes: of a request.
        open_to: who needs no more than to reach the server, where there are keys. scrapers:
            everybody with `--public-metrics`, else keys.
    """

    dialect: Dialect = "openai"
    generates: bool = False
    batchable: bool = False
    max_body_bytes: int = MAX_BODY_BYTES
    open_to: OpenTo = "keys"


_BATCHABLE = Route(generates=True, batchable=True)
_OPEN = Route(open_to="everybody")
_ADMIN = Route(open_to="admins")
_PLAIN = Route()

ROUTES: Mapping[str, Route] = MappingProxyType(
    {
        "/v1/chat/completions": _BATCHABLE,
        "/v1/completions": _BATCHABLE,
        "/v1/embeddings": _BATCHABLE,
        "/v1/responses": _BATCHABLE,
        "/v1/responses/{response_id}": _PLAIN,
        "/v1/responses/{response_id}/cancel": _PLAIN,
        "/v1/responses/{response_id}/input_items": _PLAIN,
        "/v1/messages": Route(dialect="anthropic", generates=True),
        "/v1/messages/count_tokens": Route(dialect="anthropic"),
        "/v1/completions/render": _PLAIN,
        "/v1/chat/completions/render": _PLAIN,
        "/tokenize": _PLAIN,
        "/detokenize": _PLAIN,
        "/tokenizer_info": _PLAIN,
        "/version": _PLAIN,
        "/v1/models": _PLAIN,
        "/v1/models/{model_id:path}": _PLAIN,
        "/v1/files": Route(max_body_bytes=_MAX_UPLOAD_BYTES),
        "/v1/files/{file_id}": _PLAIN,
        "/v1/files/{file_id}/content": _PLAIN,
        "/v1/batches": _PLAIN,
        "/v1/batches/{batch_id}": _PLAIN,
        "/v1/batches/{batch_id}/cancel": _PLAIN,
        "/health": _OPEN,
        "/health/ready": _OPEN,
        "/health/live": _OPEN,
        "/metrics": Route(open_to="scrapers"),
        "/v1/load_lora_adapter": _ADMIN,
        "/v1/unload_lora_adapter": _ADMIN,
        "/admin/adapters": _ADMIN,
        "/admin/requests": _ADMIN,
        "/admin/requests/{wanted}": _ADMIN,
        "/admin/live": _ADMIN,
        "/": _OPEN,
        "/static/{name}": _OPEN,
        "/openapi.json": _PLAIN,
    }
)
"""By the path as FastAPI has it. A test compares it with the routes of the application."""

_TEMPLATES = [(compile_path(path)[0], route) for path, route in ROUTES.items() if "{" in path]


def route_of(path: str) -> Route:
    """What holds for the path of a call; of one that leads nowhere, what holds by default."""
    route = ROUTES.get(path)
    if route is not None:
        return route
    return next((route for pattern, route in _TEMPLATES if pattern.match(path)), _PLAIN)


def dialect_of(path: str) -> Dialect:
    """The form of a path's errors; one that leads nowhere has that of the path it lies below."""
    while path:
        if path in ROUTES:
            return ROUTES[path].dialect
        path = path.rpartition("/")[0]
    return "openai"
