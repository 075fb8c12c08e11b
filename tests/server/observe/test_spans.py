"""Spans: what OpenTelemetry is told of a call. Needs its SDK (the extra `otel`, or `test`)."""

import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from loire.base.errors import ConfigError
from loire.server.access.options import Access
from loire.server.host.app import create_app
from loire.server.observe.spans import Spans
from loire.server.serving.served import ServedModel
from support.fake_engine import NAME, FakeEngine, run

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
TEXT: Any = {"model": NAME, "prompt": ["first", "second"], "max_tokens": 3}


def test_a_call_and_its_requests_are_spans(tiny_llama: Path, tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="OpenTelemetry's SDK is not installed")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    engine = FakeEngine(tiny_llama)
    app = create_app(ServedModel([NAME], engine), Access(), tmp_path, Spans(provider))

    async def test() -> None:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
            assert (await client.post("/v1/completions", json=TEXT, headers=headers)).is_success
            engine.death = ValueError("a defect")
            await client.post("/v1/completions", json=TEXT)
            await client.get("/health")

    run(test)
    calls = [span for span in exporter.get_finished_spans() if span.kind.name == "SERVER"]
    inner = [span for span in exporter.get_finished_spans() if span.name == "generate"]
    good, bad = calls
    assert good.name == "POST /v1/completions"
    assert f"{good.context.trace_id:032x}" == TRACE
    assert f"{good.parent.span_id:016x}" == PARENT
    assert good.attributes["loire.call.id"] == "mine"
    assert good.attributes["http.response.status_code"] == 200
    assert good.status.status_code.name == "UNSET"
    assert (bad.parent, bad.status.status_code.name) == (None, "ERROR")
    mine = [span for span in inner if span.parent.span_id == good.context.span_id]
    assert len(mine) == 2
    for span in mine:
        assert span.attributes["gen_ai.usage.output_tokens"] == 3
        assert span.attributes["gen_ai.response.finish_reasons"] == ("length",)
        assert [event.name for event in span.events] == ["first token"]
        assert good.start_time <= span.start_time <= span.events[0].timestamp <= span.end_time
        assert span.end_time <= good.end_time


def test_without_opentelemetry_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter", None)
    with pytest.raises(ConfigError, match=r"loire\[otel\]"):
        Spans.from_environment({})
