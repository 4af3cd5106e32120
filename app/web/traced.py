"""Routes of a server that traces: each request knows its trace, and the trace how the request ended."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from aiohttp import web

from app.traces import CURRENT, Traces

if TYPE_CHECKING:
    from app.web.edge import Begun, Enclosed, Respond
    from app.web.request import Request

TRACES: Final[web.AppKey[Traces]] = web.AppKey("traces")


def traced(traces: Traces, template: str, enclosed: Enclosed) -> Enclosed:
    """Return what answers a route, traced under its template."""

    async def run(request: Request) -> web.StreamResponse:
        trace = traces.begin(request.headers)
        token = CURRENT.set(trace)
        status = None
        try:
            response = await enclosed(request)
            status = response.status
        finally:
            CURRENT.reset(token)
            if trace is not None:
                traces.end(trace, request.method, template, status, time.monotonic_ns())
        return response

    return run


def traced_begun(traces: Traces, template: str, begun: Begun) -> Begun:
    """The same for what answers a route without a task."""

    def run(request: Request, respond: Respond) -> None:
        trace = traces.begin(request.headers)
        answer = respond

        def respond_and_end(response: web.StreamResponse) -> None:
            ended_ns = time.monotonic_ns()
            respond(response)
            if trace is not None:
                traces.end(trace, request.method, template, response.status, ended_ns)

        if trace is not None:
            answer = respond_and_end
        token = CURRENT.set(trace)
        try:
            begun(request, answer)
        finally:
            CURRENT.reset(token)

    return run
