"""Feature flags over HTTP: the two endpoints of OFREP, and tracked events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta

from app.access.api import key_of
from app.shadow.api import SHADOW, take, too_many_events
from app.shadow.counters import EventsFull
from app.shadow.flags import (
    FLAGS,
    STREAM_PATH,
    BulkFailure,
    ContextRefused,
    EvaluatedFlag,
    FlagFailure,
    FlagList,
    FlagNotFound,
    FlagRequest,
    Flags,
    matches,
    refetch_of,
)
from app.shadow.track import Tracked, TrackedEvent, Tracking
from app.web.answers import Answer
from app.web.body import Body
from app.web.event_stream import event_of, last_event_id, send_events
from app.web.problems import Problem
from app.web.routes import Handled, Route, json_answer, path, query

if TYPE_CHECKING:
    from app.web.request import Request

FlagKey = Annotated[str, Meta(min_length=1, max_length=256, description="Key of a flag: the name of an experiment.")]
ConfigEtag = Annotated[str, Meta(max_length=256, description="`etag` of an event of the stream: the answer is no older.")]
ConfigTime = Annotated[str, Meta(max_length=256, description="`lastModified` of that event; the etag says all.")]

_MARKS: Final[dict[str, Any]] = {"flagConfigEtag": ConfigEtag, "flagConfigLastModified": ConfigTime}
_REQUEST: Final = Body(FlagRequest)
_EVENT: Final = Body(TrackedEvent)


async def _context(request: Request) -> Any:
    """Return the context of a request, None without one. Raises ContextRefused for a body that OFREP answers by itself."""
    try:
        # Nothing of a context is kept, and a unit with a number in it masked would be another unit.
        return _REQUEST.parse(await _REQUEST.text(request)).context
    except Problem as refused:
        if refused.code == "malformed_json":
            raise ContextRefused("PARSE_ERROR", refused.detail) from None
        if refused.code == "invalid_request":
            pointer, detail = refused.errors[0].pointer, refused.errors[0].detail
            code: Any = "INVALID_CONTEXT" if pointer.startswith("/context") else "PARSE_ERROR"
            raise ContextRefused(code, f"{pointer or 'body'}: {detail}") from None
        raise


async def _flags(request: Request) -> Flags:
    """Return the flags, no older than an event of the stream that the request names, once its key may ask for them."""
    mark = query(request, "flagConfigEtag", ConfigEtag, None)
    query(request, "flagConfigLastModified", ConfigTime, None)
    await take(request)
    flags = Flags(lambda: request.app[SHADOW].catalog)
    await flags.catch_up(mark)
    return flags


async def stream_flags(request: Request) -> Handled:
    """GET /ofrep/v1/sse.

    The first event comes at once: a change between the evaluation and the stream would be missed otherwise. A client that
    resumes with what is still the newest gets none.
    """
    shadow = request.app[SHADOW]
    catalog, given = shadow.catalog, last_event_id(request)
    current = catalog.newest is None or given == catalog.newest.revision
    seen = catalog.changes if current else -1

    async def following() -> bytes:
        nonlocal seen
        if seen == catalog.changes or catalog.newest is None:
            return b""
        seen = catalog.changes
        return event_of("message", catalog.newest.revision, msgspec.json.encode(refetch_of(catalog.newest)))

    with shadow.watches.enter(key_of(request).key_id):
        return await send_events(request, shadow.watches, FLAGS, following, lambda: seen == catalog.changes)


async def evaluate_flag(request: Request) -> Handled:
    """POST /ofrep/v1/evaluate/flags/{key}."""
    key = path(request, "key")
    flags = await _flags(request)
    try:
        flag = await flags.one(key, await _context(request))
    except ContextRefused as refused:
        return Answer(msgspec.json.encode(FlagFailure(key, refused.code, refused.detail)), status=400)
    if flag is None:
        missing = FlagNotFound(key, "FLAG_NOT_FOUND", "There is no experiment with this name.")
        return Answer(msgspec.json.encode(missing), status=404)
    return json_answer(msgspec.json.encode(EvaluatedFlag(*msgspec.structs.astuple(flag))))


async def evaluate_flags(request: Request) -> Handled:
    """POST /ofrep/v1/evaluate/flags."""
    flags = await _flags(request)
    try:
        body, tag = await flags.all(await _context(request))
    except ContextRefused as refused:
        return Answer(msgspec.json.encode(BulkFailure(refused.code, refused.detail)), status=400)
    fields = f"ETag: {tag}\r\n"
    if matches(request.headers.get("if-none-match"), tag):
        return Answer(b"", status=304, fields=fields)
    return Answer(body, fields=fields)


async def track_event(request: Request) -> Handled:
    """POST /v1/track."""
    body = await _EVENT.read(request)
    await take(request)
    try:
        tracked = await Tracking(lambda: request.app[SHADOW].catalog).track(body)
    except EventsFull:
        raise too_many_events() from None
    return json_answer(msgspec.json.encode(tracked))


_AWAY: Final = (503, "unavailable")
_LIMITED: Final = (429, "rate_limited")

FLAG_ROUTES: Final = (
    Route(
        "POST", "/ofrep/v1/evaluate/flags/{key}", evaluate_flag, summary="Evaluate one flag (OFREP 0.3.0)", tag="flags",
        path_fields={"key": FlagKey}, query=_MARKS, body=FlagRequest,
        answers={200: EvaluatedFlag, 400: FlagFailure, 404: FlagNotFound},
        problems=(_LIMITED, _AWAY), key_field="x-api-key",
    ),
    Route(
        "POST", "/ofrep/v1/evaluate/flags", evaluate_flags, summary="Evaluate all flags (OFREP 0.3.0)", tag="flags",
        query=_MARKS, body=FlagRequest,
        answers={200: FlagList, 304: None, 400: BulkFailure}, problems=(_LIMITED, _AWAY), key_field="x-api-key", etag=True,
    ),
    Route(
        "GET", STREAM_PATH, stream_flags, summary="Events that say when to evaluate again (OFREP 0.3.0)", tag="flags",
        answers={200: None}, media_type="text/event-stream", streams=True, waits=True, key_field="x-api-key",
        problems=((503, "too_many_watchers"), _AWAY),
    ),
    Route(
        "POST", "/v1/track", track_event, summary="Count what a unit did in every experiment that waits for it", tag="flags",
        body=TrackedEvent, answers={200: Tracked}, key_field="x-api-key",
        problems=(_LIMITED, (429, "too_many_events"), (422, "unknown_unit"), _AWAY),
    ),
)  # fmt: skip
