"""Traces to an OpenTelemetry collector, by OTLP over HTTP. The packages are those of the extra `otel`.

Sources: W3C Trace Context; OpenTelemetry's semantic conventions for HTTP servers (http.request.method, http.route,
http.response.status_code).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING, Final

from app import __version__
from app.settings import SettingRefused
from app.traces import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span

    from app.settings import Settings

log = logging.getLogger(__name__)

TRACES_PER_S_MAX: Final = 200  # a request costs about 0.2 ms more; callers decide by `traceparent`, so there is a bound
EXPORT_TIMEOUT_S: Final = 5
CLOSE_TIMEOUT_S: Final = 5.0
SAMPLED: Final = 0x01  # of the trace flags


class OtelTraces:
    """Makes spans of requests. Its processor sends them, in a thread of its own."""

    def __init__(
        self,
        processor: SpanProcessor,
        ratio: float,
        replica: str,
        *,
        draw_01: Callable[[], float] = random.random,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ratio` of the requests that bring no `traceparent` are traced; of the others those that say so."""
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - the extra may not be installed
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        resource = Resource.create(
            {"service.name": "shieldx", "service.version": __version__, "service.instance.id": replica}
        )
        self._provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("shieldx", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._ratio = ratio
        self._draw_01 = draw_01
        self._clock_s = clock_s
        self._second = -1
        self._wall_offset_ns = 0  # as of that second
        self._begun = 0  # in that second
        self.left_out = 0  # requests beyond TRACES_PER_S_MAX

    def begin(self, headers: Mapping[str, str]) -> Trace | None:
        """Return the trace of a request that is to be traced, None for another."""
        parent: Context | None = None
        if "traceparent" in headers:
            from opentelemetry.trace import get_current_span  # noqa: PLC0415

            parent = self._propagator.extract(headers)
            said = get_current_span(parent).get_span_context()
            if not said.is_valid:
                parent = None
            elif not said.trace_flags & SAMPLED:
                return None
        if parent is None and self._draw_01() >= self._ratio:
            return None
        second = int(self._clock_s())
        if second != self._second:
            self._second, self._begun = second, 0
            self._wall_offset_ns = time.time_ns() - time.monotonic_ns()
        if self._begun >= TRACES_PER_S_MAX:
            self.left_out += 1
            return None
        self._begun += 1
        return Trace(parent, self._wall_offset_ns)

    def end(self, trace: Trace, method: str, route: str, status: int | None, ended_ns: int) -> None:
        """Make the spans of a request that was answered, or whose client left."""
        from opentelemetry.context import Context  # noqa: PLC0415
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context  # noqa: PLC0415

        trace.closed = True
        offset_ns = trace.wall_offset_ns
        parent = trace.parent if isinstance(trace.parent, Context) else Context()
        facts: dict[str, str | int] = {"http.request.method": method, "http.route": route}
        if status is not None:
            facts["http.response.status_code"] = status
        whole = self._tracer.start_span(
            f"{method} {route}", parent, SpanKind.SERVER, facts, start_time=trace.started_ns + offset_ns
        )
        if status is None or status >= 500:
            whole.set_status(StatusCode.ERROR)
        spans: list[Span] = []
        for step in trace.steps:
            around = whole if step.inside is None else spans[step.inside]
            span = self._tracer.start_span(
                step.name, set_span_in_context(around, Context()),
                attributes={f"shieldx.{name}": value for name, value in step.facts.items()},
                start_time=step.started_ns + offset_ns,
            )  # fmt: skip
            if step.failed:
                span.set_status(StatusCode.ERROR)
            spans.append(span)
        for span, step in zip(spans, trace.steps, strict=True):
            span.end(step.ended_ns + offset_ns)
        whole.end(ended_ns + offset_ns)

    async def close(self) -> None:
        """Send what is left, within CLOSE_TIMEOUT_S."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await asyncio.to_thread(self._provider.shutdown)
        except TimeoutError:
            log.warning("the last traces were not sent in time")


def open_traces(settings: Settings) -> OtelTraces | None:
    """Return what the settings ask for, None when tracing is off. Raises SettingRefused without the extra's packages."""
    if not settings.traces_url:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError:
        raise SettingRefused("SHIELDX_TRACES_URL: needs the packages of `pip install 'shieldx[otel]'`") from None
    exporter = OTLPSpanExporter(endpoint=settings.traces_url, timeout=EXPORT_TIMEOUT_S)
    return OtelTraces(BatchSpanProcessor(exporter), settings.traces_ratio, settings.replica_name)
