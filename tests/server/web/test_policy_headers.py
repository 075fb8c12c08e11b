"""No answer is a page of anybody's, but for our own page, which says more."""

import pytest
from starlette.testclient import TestClient

from loire.server.access.keys import KeyRing, parse_key
from loire.server.access.options import Access
from loire.server.host.app import create_app
from loire.server.host.metrics_port import metrics_app
from loire.server.observe.metrics import Metrics
from loire.server.serving.served import ServedModel
from loire.server.web.policy_headers import HEADERS
from support.fake_engine import NAME, ask, endpoints

RING = KeyRing([parse_key("alice:alice-key-0123456789", place="")])


@pytest.mark.parametrize("access", [Access(), Access(ring=RING)], ids=["open", "keys"])
def test_every_answer_has_them(access: Access) -> None:
    app = create_app(ServedModel([NAME]), access)
    asked = {*endpoints(app), ("GET", "/nowhere"), ("PATCH", "/health"), ("GET", "/docs")}
    asked -= {("GET", "/admin/live")}  # a stream without end
    for method, path in sorted(asked):
        answer = ask(app, method, path, headers={"Origin": "https://evil.example"})
        assert_policy(answer.headers, path)


def assert_policy(headers: object, path: str) -> None:
    assert hasattr(headers, "get_list")
    for name, value in HEADERS:
        [told] = headers.get_list(name.decode())
        own_page = name == b"content-security-policy" and path in ("/", "/static/{name}")
        assert own_page or told == value.decode(), (path, name)
        assert name != b"content-security-policy" or "frame-ancestors 'none'" in told


def test_so_has_the_port_of_metrics() -> None:
    client = TestClient(metrics_app(Metrics(lambda: None)))
    for path in ("/metrics", "/nowhere"):
        assert_policy(client.get(path).headers, path)


def test_nothing_loads_scripts_of_another_host() -> None:
    app = create_app(ServedModel([NAME]))
    assert ask(app, "GET", "/openapi.json").status_code == 200
    for path in ("/docs", "/redoc", "/docs/oauth2-redirect"):
        assert ask(app, "GET", path).status_code == 404
