"""The table of routes is the application's, and nothing that it says is left undone."""

from typing import get_args

import pytest

from loire.server.batches.protocol import Endpoint
from loire.server.host.app import background_app, create_app
from loire.server.serving.served import ServedModel
from loire.server.web.routes import ROUTES, dialect_of, route_of
from support.fake_engine import NAME, endpoints


def test_the_table_is_the_application() -> None:
    app = create_app(ServedModel([NAME]))
    assert {path for _, path in endpoints(app)} == set(ROUTES)


def test_what_generates_is_posted() -> None:
    found = set(endpoints(create_app(ServedModel([NAME]))))
    assert all(("POST", path) in found for path, route in ROUTES.items() if route.generates)


def test_batches_can_ask_for_what_the_table_says() -> None:
    batchable = [path for path, route in ROUTES.items() if route.batchable]
    assert list(get_args(Endpoint)) == batchable
    assert {("POST", path) for path in batchable} <= set(
        endpoints(background_app(ServedModel([NAME])))
    )
    assert all(ROUTES[path].generates for path in batchable)


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/v1/files", "/v1/files"),
        ("/v1/files/file-1", "/v1/files/{file_id}"),
        ("/v1/models/of/somebody", "/v1/models/{model_id:path}"),
        ("/admin/requests/call-1", "/admin/requests/{wanted}"),
        ("/static/main.js", "/static/{name}"),
    ],
)
def test_paths_are_found_by_their_templates(path: str, template: str) -> None:
    assert route_of(path) is ROUTES[template]


@pytest.mark.parametrize("path", ["/static", "/static/a/b", "/health/", "//health", "/x", ""])
def test_what_is_not_in_the_table_is_closed(path: str) -> None:
    assert route_of(path).open_to == "keys"


def test_errors_below_an_api_have_its_form() -> None:
    assert dialect_of("/v1/messages/batches") == dialect_of("/v1/messages") == "anthropic"
    assert dialect_of("/v1/messagesx") == dialect_of("/v1/models/m") == dialect_of("") == "openai"
