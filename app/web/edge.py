"""The edge: what happens to every request around its route.

`enclose` puts one coroutine around the coroutine of a route when the route is registered, where everything that does not
change between requests is known already. It is the one middleware of the server: request id, bearer key, path and query
shape, every exception to problem+json, metrics. aiohttp's own middleware chain costs two more coroutines per request and is
not used.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, runtime_checkable

from aiohttp import hdrs, web
from aiohttp.http import HttpVersion11
from multidict import istr

from app.privacy.guard import REFUSED_DETAIL, holds_card
from app.turns import Line
from app.web.answers import Answer, problem_answer
from app.web.logs import LineBudget
from app.web.problems import FieldError, Problem, invalid
from app.web.request import Principal, Request
from app.web.typed import typed

if TYPE_CHECKING:
    from app.web.routes import Handled, Route

SLOW_REQUEST_S: Final = 1.0  # two orders above the target latency; such a request is logged always.
HEADERS_MAX_BYTES: Final = 16 * 1024  # names and values of one request together; four times a crowded one.
KNOWN_PARAMETERS_MAX: Final = 4_096  # path parameters that are remembered to be well-formed: 1 MB
# Of refused requests, for each route: a client in a loop has thousands refused in a second, and their lines took a third of
# the event loop.
REFUSAL_LINES_PER_S: Final = 100
# business refusals: expected in numbers, logged below warning.
QUIET_STATUSES: Final = frozenset({402, 404, 409})
HTTP_ERRORS: Final = {
    404: ("not_found", "There is nothing at this path."),
    405: ("method_not_allowed", "This path does not take this method."),
    413: ("payload_too_large", "The body is too large."),
    417: ("expectation_failed", "The only expectation that is met is 100-continue."),
}

X_REQUEST_ID: Final = istr("X-Request-ID")
log = logging.getLogger("shieldx.web")


# Lets a request in or not: Authorization header and what tells the client's address, to whoever calls or the answer.
Entrance = Callable[[str | None, Callable[[], str | None]], Principal | Problem]
Entrances = Callable[[str, str], Entrance]
Faults = Callable[[Exception], Problem | None]
Record = Callable[[str, str, int, float], None]
Enclosed = Callable[[Request], Awaitable[web.StreamResponse]]
# What takes the end of a call: what its route made of it, or the exception it ended with.
Done = Callable[["web.StreamResponse | Problem | Exception"], None]
Respond = Callable[[web.StreamResponse], None]
Begun = Callable[[Request, Respond], None]
Adapted = Callable[[web.Request], Awaitable[web.StreamResponse]]

ENTRANCES: Final[web.AppKey[Entrances]] = web.AppKey("entrances")


@runtime_checkable
class Prompt(Protocol):
    """A route that needs no task: it begins a request that is whole, and hands its end to a callback."""

    def begin(self, request: Request, done: Done) -> None:
        """Have `done` called once, now or later. An exception raised here is the end, too."""


class Fixed(NamedTuple):
    """A route whose path has no parameters: what the router finds for it, and what answers."""

    match: web.UrlMappingMatchInfo
    adapted: Adapted


FIXED: Final[web.AppKey[Mapping[tuple[str, str], Fixed]]] = web.AppKey("fixed")
LINE: Final[web.AppKey[Line]] = web.AppKey("line")  # of answers in parts
FAULTS: Final[web.AppKey[Faults]] = web.AppKey("faults")
RECORD: Final[web.AppKey[Record]] = web.AppKey("record")


def set_up(app: web.Application, entrances: Entrances, record: Record | None = None, faults: Faults | None = None) -> None:
    """Give the edge of `app` its parts, before `add_routes`.

    entrances  method and path template of a route that is not open, to what lets its requests in: without I/O, and
               comparing secrets in constant time
    record     method, route template, status, seconds; called once per answer
    faults     what the exceptions of the services mean; None for one that is a fault of ours (500)
    """
    app[ENTRANCES] = entrances
    app[LINE] = Line()
    app.on_response_prepare.append(_hide_software)
    if faults is not None:
        app[FAULTS] = faults
    if record is not None:
        app[RECORD] = record


async def _hide_software(_: web.Request, response: web.StreamResponse) -> None:
    """Send no Server field with a stream: aiohttp would name itself, Python and both versions."""
    response.headers.popall(hdrs.SERVER, None)


def unauthorized() -> Problem:
    """The 401 of a request without a valid key."""
    return Problem(
        401,
        "unauthorized",
        "Send a valid key as Authorization: Bearer <key>.",
        headers={"WWW-Authenticate": "Bearer"},
    )


class _Parameter:
    """A path parameter: the key of what has passed is its identity, for types take microseconds to hash."""

    def __init__(self, name: str, kind: Any) -> None:
        self.name: Final = name
        self.kind: Final = kind


_parameter = lru_cache(maxsize=None)(_Parameter)  # one for all routes that have the same; there are a few dozen


@lru_cache(maxsize=KNOWN_PARAMETERS_MAX)
def _check_parameter(text: str, parameter: _Parameter) -> None:
    """Check one path parameter; what has passed is remembered. Raises Problem 422."""
    place = f"{{{parameter.name}}}"
    typed(text, parameter.kind, place)
    if holds_card(text):
        raise invalid(place, REFUSED_DETAIL)


def _check_shape(request: Request, route: "Route", parameters: "Sequence[_Parameter]") -> None:
    """Check path parameters against their types; refuse unknown query parameters."""
    for parameter in parameters:
        _check_parameter(request.match_info[parameter.name], parameter)
    if not route.any_query and request.query_text:
        wrong = [name for name in request.query if name not in route.query]
        if wrong:
            error = FieldError("?", "Unknown query parameter; known are: " + (", ".join(route.query) or "none"))
            raise Problem(422, "invalid_request", "The request has invalid fields.", errors=(error,))


def _drop_traces(error: BaseException) -> None:
    """Drop the tracebacks of an expected exception, and of what caused it: nobody reads them.

    They refer to frames that refer to the exception. Such a cycle keeps the request until the cyclic collector comes by,
    and to free those of a second of refusals takes it 80 ms at once.
    """
    link: BaseException | None = error
    while link is not None and link.__traceback__ is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__


def _answer_to(error: Exception, request: Request, template: str) -> Answer:
    """The answer to what a route raised. A client that left gets none: its ConnectionError is raised."""
    request_id = request.request_id
    if isinstance(error, Problem):
        _drop_traces(error)
        return problem_answer(error, request_id)
    gone = request.gone
    faults = request.app.get(FAULTS)
    known = faults(error) if faults is not None and not (gone and isinstance(error, ConnectionError)) else None
    if known is not None:
        _drop_traces(error)
        return problem_answer(known, request_id)
    if isinstance(error, web.HTTPException):
        code, detail = HTTP_ERRORS.get(error.status, ("http_" + str(error.status), error.reason))
        allow = error.headers.get(hdrs.ALLOW)
        return problem_answer(
            Problem(error.status, code, detail, headers=None if allow is None else {"Allow": allow}),
            request_id,
        )
    if isinstance(error, ConnectionError) and gone:
        raise error
    log.error(
        "unhandled %s in %s %s",
        type(error).__name__,
        request.method,
        template,
        exc_info=error,
        extra={"request_id": request_id},
    )
    if request.source is not None and request.source.writer.output_size:
        raise ConnectionResetError("the answer had begun and cannot be completed") from error
    return problem_answer(
        Problem(
            500,
            "internal_error",
            "The server failed to handle the request; the request id names the log entry.",
        ),
        request_id,
    )


def stamp(response: web.StreamResponse, request_id: str) -> None:
    """Put the fields of the edge on a response of aiohttp's own classes.

    The edge does it for what a route returns; a route that streams calls it before `prepare`.
    """
    if not response.prepared:
        response.headers[X_REQUEST_ID] = request_id
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        response.headers.setdefault("Cache-Control", "no-store")


def _note(request: Request, template: str, status: int, seconds: float, slow_s: float, lines: LineBudget) -> None:
    """The access line: faults and slow requests warn, business refusals inform, the rest is debug."""
    if seconds >= slow_s or (status >= 400 and status not in QUIET_STATUSES):
        level = logging.WARNING
    elif status >= 400:
        level = logging.INFO
    else:
        level = logging.DEBUG
    if log.isEnabledFor(level):
        if status >= 400:
            left_out = lines.take(perf_counter())
            if left_out is None:
                return
            if left_out:
                log.warning("lines of refused requests were left out", extra={"path": template, "count": left_out})
        log.log(
            level,
            "%s %s %d",
            request.method,
            template,
            status,
            extra={"request_id": request.request_id, "ms": round(seconds * 1000, 3)},
        )


def _admission(app: web.Application, route: "Route") -> Callable[[Request], Problem | None]:
    """What lets a request in or refuses it before its route runs, with all that is fixed looked up once.

    In the order of the API: 431, 401, 403, then the shape of path and query (422); the route itself goes on
    with 413, 415, 400, 422 of its body.
    """
    roles = route.roles
    template = route.path
    enter = None if route.open else app[ENTRANCES](route.method, template)
    parameters = tuple(_parameter(name, kind) for name, kind in route.path_fields.items())
    key_field = route.key_field

    def admit(request: Request) -> Problem | None:
        if request.header_bytes > HEADERS_MAX_BYTES:
            return Problem(431, "headers_too_large", "The header section is too large.", close=True)
        request.template = template
        if enter is not None:
            given = request.headers.get("authorization")
            if given is None and key_field and key_field in request.headers:
                given = f"Bearer {request.headers[key_field]}"
            principal = enter(given, request.address)
            if isinstance(principal, Problem):
                return principal
            if roles is not None and principal.role not in roles:
                return Problem(403, "forbidden", "The key does not have the right for this call.")
            request.principal = principal
        if parameters or request.query_text:
            _check_shape(request, route, parameters)
        return None

    return admit


def _finished(response: "Handled", request_id: str) -> web.StreamResponse:
    """What a route returned, as an answer that carries the request id."""
    if isinstance(response, Answer):
        response.request_id = request_id
        return response
    if isinstance(response, Problem):
        return problem_answer(response, request_id)
    stamp(response, request_id)
    return response


def _conclusion(
    app: web.Application, route: "Route"
) -> Callable[[Request, float, "Handled | Exception"], web.StreamResponse]:
    """What makes the answer out of the end of a call that began at a time, and records it."""
    template = route.path
    slow_s = float("inf") if route.waits else SLOW_REQUEST_S
    logs = log.isEnabledFor
    refusal_lines = LineBudget(REFUSAL_LINES_PER_S)

    def conclude(request: Request, started: float, end: "Handled | Exception") -> web.StreamResponse:
        returned = _answer_to(end, request, template) if isinstance(end, Exception) else end
        if request.source is None and not isinstance(returned, Answer | Problem):
            returned = _answer_to(AssertionError(f"{template} must be a route that streams"), request, template)
        response = _finished(returned, request.request_id)
        seconds = perf_counter() - started
        status = response.status
        record = app.get(RECORD)
        if record is not None:
            record(request.method, template, status, seconds)
        if status >= 400 or seconds >= slow_s or logs(logging.DEBUG):
            _note(request, template, status, seconds, slow_s, refusal_lines)
        return response

    return conclude


def enclose(app: web.Application, route: "Route") -> Enclosed:
    """The coroutine that runs for `route`: admission, the route, its answer, the record."""
    handler = route.handler
    admit = _admission(app, route)
    conclude = _conclusion(app, route)

    async def enclosed(request: Request) -> web.StreamResponse:
        started = perf_counter()
        try:
            end: Handled | Exception = admit(request) or await handler(request)
        except Exception as error:  # noqa: BLE001 - the outermost frame: nothing may become aiohttp's 500.
            end = error
        return conclude(request, started, end)

    return enclosed


def begin(app: web.Application, route: "Route", prompt: Prompt) -> Begun:
    """The same as `enclose` for a route that needs no task: its answer goes to a callback."""
    admit = _admission(app, route)
    conclude = _conclusion(app, route)

    def begun(request: Request, respond: Respond) -> None:
        started = perf_counter()

        def done(end: "Handled | Exception") -> None:
            respond(conclude(request, started, end))

        try:
            refused = admit(request)
            if refused is None:
                prompt.begin(request, done)
                return
        except Exception as error:  # noqa: BLE001 - the outermost frame, as in `enclose`.
            done(error)
        else:
            done(refused)

    return begun


async def _refuse_unknown(app: web.Application, source: web.Request | None) -> Problem:
    """404, or 405 with Allow where another method has a route. Both are public."""
    allowed: set[str] = set()
    for resource in app.router.resources():
        if source is not None and resource.canonical != "/{rest}":
            _, methods = await resource.resolve(source)
            allowed |= methods
    code, detail = HTTP_ERRORS[405 if allowed else 404]
    if allowed:
        return Problem(405, code, detail, headers={"Allow": ", ".join(sorted(allowed))})
    return Problem(404, code, detail)


def enclose_unknown(app: web.Application) -> Enclosed:
    """The coroutine for every request that no route takes; its metrics go under the template `unknown`."""
    from app.web.routes import Route  # noqa: PLC0415 - routes imports this file; the class is needed only here.

    async def refuse(request: Request) -> Problem:
        return await _refuse_unknown(app, request.source)

    return enclose(app, Route("GET", "unknown", refuse, summary="", tag="", open=True, any_query=True))


def adapt(enclosed: Enclosed) -> Adapted:
    """Return what aiohttp runs for a route: its request becomes ours."""

    async def adapted(source: web.Request) -> web.StreamResponse:
        return await enclosed(Request.of(source))

    return adapted


async def expect_continue(source: web.Request) -> web.StreamResponse | None:
    """Answer `Expect: 100-continue`; 417 for any other expectation (RFC 9110 10.1.1)."""
    if source.version < HttpVersion11:
        return None
    if source.headers.get(hdrs.EXPECT, "").lower() != "100-continue":
        return problem_answer(Problem(417, *HTTP_ERRORS[417]), Request.of(source).request_id)
    await source.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    source.writer.output_size = 0  # The interim answer is not the answer: an error can still be sent.
    return None
