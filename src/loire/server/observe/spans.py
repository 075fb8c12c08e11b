"""Spans of OpenTelemetry, made from what is known of a call once it has ended.

One span of the server per call, below the caller's own if it sent a `traceparent`
(https://www.w3.org/TR/trace-context/), and below it one per request to the engine, with the
attributes of https://opentelemetry.io/docs/specs/semconv/gen-ai/. Where they go is said by the
standard environment variables, such as OTEL_EXPORTER_OTLP_ENDPOINT.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from loire.base.errors import ConfigError
from loire.server.web.call import Call, RequestLife

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

SERVICE_NAME = "loire"


class Spans:
    """Makes the spans of calls. provider: of OpenTelemetry's SDK."""

    def __init__(self, provider: "TracerProvider") -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("loire")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Spans":
        """Spans that are sent by OTLP over HTTP. Raises ConfigError without OpenTelemetry's SDK."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigError(
                f"--otel needs OpenTelemetry, which is not complete here ({error}): "
                f"pip install 'loire[otel]'"
            ) from error
        named = "OTEL_SERVICE_NAME" in environment
        resource = Resource.create({} if named else {"service.name": SERVICE_NAME})
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def add(self, call: Call) -> None:
        """Make the spans of a call that has ended."""
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        assert call.end_s is not None
        # From the monotonic clock to nanoseconds of Unix time.
        epoch_s = call.start_unix_s - call.start_s
        attributes: dict[str, str | int] = {
            "http.request.method": call.method,
            "url.path": call.path,
            "loire.call.id": call.call_id,
        }
        if call.status is not None:
            attributes["http.response.status_code"] = call.status
        if call.error_code is not None:
            attributes["error.type"] = call.error_code
        if call.tenant:
            attributes["loire.tenant"] = call.tenant
        span = self._tracer.start_span(
            f"{call.method} {call.path}",
            context=TraceContextTextMapPropagator().extract(call.trace_headers),
            kind=trace.SpanKind.SERVER,
            attributes=attributes,
            start_time=_ns(epoch_s + call.start_s),
        )
        if call.status is None or call.status >= 500:
            span.set_status(trace.StatusCode.ERROR)
        context = trace.set_span_in_context(span)
        for life in call.requests:
            inner = self._tracer.start_span(
                "generate",
                context=context,
                attributes=_attributes(life),
                start_time=_ns(epoch_s + life.arrival_s),
            )
            for name, after_s in (
                ("scheduled", life.timing.queue_s),
                ("first token", life.timing.ttft_s),
            ):
                if after_s is not None:
                    inner.add_event(name, timestamp=_ns(epoch_s + life.arrival_s + after_s))
            if life.outcome == "failed":
                inner.set_status(trace.StatusCode.ERROR, life.error)
            inner.end(_ns(epoch_s + (life.end_s or call.end_s)))
        span.end(_ns(epoch_s + call.end_s))

    def close(self) -> None:
        """Send what has not been sent."""
        self._provider.shutdown()


def _attributes(life: RequestLife) -> dict[str, str | int | list[str]]:
    return {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.usage.input_tokens": life.num_prompt_tokens,
        "gen_ai.usage.output_tokens": life.num_output_tokens,
        "gen_ai.response.finish_reasons": [
            life.finish_reasons[choice] for choice in sorted(life.finish_reasons)
        ],
        "loire.request.id": life.request_id,
        "loire.cached_tokens": life.num_cached_tokens,
        "loire.steps": life.num_steps,
        "loire.recomputations": life.num_recomputations,
        "loire.outcome": str(life.outcome),
    }


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
