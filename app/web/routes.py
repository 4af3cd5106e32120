"""Routes as data, and the readers for what stands outside the body: keys, versions, queries."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, TypeVar

import msgspec
from aiohttp import web

from app.privacy.guard import REFUSED_DETAIL, is_card_alone
from app.web.answers import JSON, Answer, json_answer, problem_answer
from app.web.edge import FIXED, Fixed, Prompt, adapt, begin, enclose, enclose_unknown, expect_continue
from app.web.fastpath import PATHS, Paths, Taker
from app.web.fields import LIMIT_DEFAULT, Cursor, Limit, Time
from app.web.problems import Problem, invalid
from app.web.request import Request
from app.web.traced import TRACES, traced, traced_begun
from app.web.typed import typed

__all__ = [
    "Answer",
    "Handled",
    "Route",
    "add_routes",
    "cursor",
    "idempotency_key",
    "if_match",
    "json_answer",
    "limit",
    "path",
    "problem_answer",
    "query",
    "time",
]

E = TypeVar("E")

Handled = web.StreamResponse | Problem
KEY_MAX: Final = 255  # characters of an Idempotency-Key, as the API contract says.

_IDEMPOTENCY_KEY: Final = "idempotency-key"
_bare_key = re.compile(r"[\x21\x23-\x7e][\x20-\x7e]{0,254}\Z")
_quoted_key = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"\Z')
_escape = re.compile(r'\\(["\\])')
_version = re.compile(r'"(0|[1-9][0-9]{0,15})"\Z|(0|[1-9][0-9]{0,15})\Z')


@dataclass(frozen=True)
class Route:
    """One call of the API: how it is routed, guarded and described.

    path         template, e.g. "/v1/accounts/{tenant_id}"
    handler      the coroutine that answers; it may raise or return a `Problem`
    body         struct of the request body, None for none
    answers      status to struct of the answer body, None for an answer without a JSON body
    query        name to type of each query parameter; the edge refuses every other one
    path_fields  name to type of each path parameter; the edge checks them
    idempotent   needs an Idempotency-Key
    open         needs no key
    roles        roles that may call, None for every valid key
    problems     (status, code) of each refusal beyond those that every route has
    etag         the answer has an ETag; a PUT, PATCH or DELETE, or what is idempotent, may have If-Match
    media_type   media type of the answers below status 400
    body_optional  the body may be absent
    any_query    query parameters that are not declared are let through
    streams      answers piece by piece, through `request.source`, so it needs aiohttp's request
    waits        may wait for a change, so that an answer that takes long is not a slow one
    key_field    header field, in lower case, that may carry the key in place of Authorization
    description  further sentences for the reference
    """

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    handler: Callable[[Request], Awaitable[Handled]]
    summary: str
    tag: str
    body: type[msgspec.Struct] | None = None
    answers: Mapping[int, type[Any] | None] = field(default_factory=dict)
    query: Mapping[str, Any] = field(default_factory=dict)
    path_fields: Mapping[str, Any] = field(default_factory=dict)
    idempotent: bool = False
    open: bool = False
    roles: frozenset[str] | None = None
    problems: tuple[tuple[int, str], ...] = ()
    etag: bool = False
    media_type: str = JSON
    body_optional: bool = False
    any_query: bool = False
    streams: bool = False
    waits: bool = False
    key_field: str = ""
    description: str = ""


def add_routes(app: web.Application, routes: Sequence[Route]) -> None:
    """Register the routes, each inside the edge, and the answers 404 and 405 for everything else.

    A GET route answers HEAD too (RFC 9110 9.3.2). Called once per application, with all its routes.
    """
    router = app.router
    fixed: dict[tuple[str, str], Fixed] = {}
    paths = Paths(app)
    traces = app.get(TRACES)
    for route in routes:
        enclosed = enclose(app, route)
        begun = begin(app, route, route.handler) if isinstance(route.handler, Prompt) else None
        if traces is not None:
            enclosed = traced(traces, route.path, enclosed)
            begun = None if begun is None else traced_begun(traces, route.path, begun)
        adapted = adapt(enclosed)
        if not route.streams:
            paths.add(route.method, route.path, Taker(enclosed, begun))
        methods = ("GET", "HEAD") if route.method == "GET" else (route.method,)
        for method in methods:
            added = router.add_route(method, route.path, adapted, expect_handler=expect_continue)
            if "{" not in route.path:
                fixed[method, route.path] = Fixed(_match(app, added), adapted)
    router.add_route("*", "/{rest:.*}", adapt(enclose_unknown(app)), expect_handler=expect_continue)
    app[FIXED] = fixed
    app[PATHS] = paths


def _match(app: web.Application, route: web.AbstractRoute) -> web.UrlMappingMatchInfo:
    """What the router would find for a path without parameters: the same for every request, so it is made once."""
    match = web.UrlMappingMatchInfo({}, route)
    match.add_app(app)
    match.freeze()
    return match


def idempotency_key(request: Request) -> str:
    """The Idempotency-Key: 1-255 printable ASCII characters, in exactly one field.

    A quoted key (RFC 8941 string) is the same key as the bare one.
    refuses  400 `idempotency_key_missing`, `idempotency_key_invalid`; 422 `invalid_request` for a card number
    """
    given = request.headers.get(_IDEMPOTENCY_KEY)
    if given is None:
        raise Problem(400, "idempotency_key_missing", "This call needs an Idempotency-Key header.")
    if given.startswith('"'):
        quoted = _quoted_key.match(given)
        given = _escape.sub(r"\1", quoted.group(1)) if quoted is not None else ""
        good = 1 <= len(given) <= KEY_MAX
    else:
        good = _bare_key.match(given) is not None
    if not good or _IDEMPOTENCY_KEY in request.repeated:
        raise Problem(
            400,
            "idempotency_key_invalid",
            f"Idempotency-Key must be one field of 1-{KEY_MAX} printable ASCII characters.",
        )
    if is_card_alone(given):
        raise invalid("Idempotency-Key:", REFUSED_DETAIL)
    return given


def query(request: Request, name: str, kind: Any, default: E) -> Any | E:
    """One query parameter, read as the annotated type `kind`; `default` if it is absent.

    refuses  422 `invalid_request` with pointer `?name`: twice, or not of that type
    """
    texts = request.query.getall(name, ())
    if not texts:
        return default
    if len(texts) > 1:
        raise invalid(f"?{name}", "Expected at most once")
    return typed(texts[0], kind, f"?{name}")


def limit(request: Request) -> int:
    """`?limit=`: entries on a page, 1 to 1000, 100 by default."""
    return int(query(request, "limit", Limit, LIMIT_DEFAULT))


def cursor(request: Request) -> str | None:
    """`?cursor=`: the opaque `next_cursor` of the page before, None for the first page."""
    text: str | None = query(request, "cursor", Cursor, None)
    return text


def time(request: Request, name: str) -> datetime | None:
    """A query parameter that is an RFC 3339 time with a `Z`; None if it is absent."""
    at: datetime | None = query(request, name, Time, None)
    return at


def path(request: Request, name: str) -> str:
    """One path parameter as text; the edge has checked it if the route declares it in `path_fields`."""
    return request.match_info[name]


def if_match(request: Request) -> int | None:
    """The version in If-Match: `"7"` or `7`; None without one, or for `*`.

    refuses  422 `invalid_request`: a weak tag (RFC 9110 13.1.1 wants strong ones), a list, anything else
    """
    given = request.headers.get("if-match")
    if given is None or given == "*":
        return None
    match = _version.match(given)
    if match is None or "if-match" in request.repeated:
        raise invalid("If-Match:", 'Expected one strong entity tag that is a version, like "7"')
    return int(match.group(1) or match.group(2))
