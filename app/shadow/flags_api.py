"""Feature flags over HTTP: the two endpoints of OFREP, and tracked events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta

from app.shadow.api import SHADOW, take, too_many_events
from app.shadow.counters import EventsFull
from app.shadow.flags import (
    BulkFailure,
    ContextRefused,
    Flag,
    FlagFailure,
    FlagList,
    FlagNotFound,
    FlagRequest,
    Flags,
    matches,
)
from app.shadow.track import Tracked, TrackedEvent, Tracking
from app.web.answers import Answer
from app.web.body import Body
from app.web.problems import Problem
from app.web.routes import Handled, Route, json_answer, path, query

if TYPE_CHECKING:
    from app.web.request import Request

FlagKey = Annotated[str, Meta(min_length=1, max_length=256, description="Key of a flag: the name of an experiment.")]
ConfigMark = Annotated[str, Meta(max_length=256, description="Taken and not needed: answers are never stale here.")]

_MARKS: Final = ("flagConfigEtag", "flagConfigLastModified")
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


async def evaluate_flag(request: Request) -> Handled:
    """POST /ofrep/v1/evaluate/flags/{key}."""
    key = path(request, "key")
    await take(request)
    try:
        flag = await Flags(lambda: request.app[SHADOW].catalog).one(key, await _context(request))
    except ContextRefused as refused:
        return Answer(msgspec.json.encode(FlagFailure(key, refused.code, refused.detail)), status=400)
    if flag is None:
        missing = FlagNotFound(key, "FLAG_NOT_FOUND", "There is no experiment with this name.")
        return Answer(msgspec.json.encode(missing), status=404)
    return json_answer(msgspec.json.encode(flag))


async def evaluate_flags(request: Request) -> Handled:
    """POST /ofrep/v1/evaluate/flags."""
    for name in _MARKS:
        query(request, name, ConfigMark, None)
    await take(request)
    try:
        body, tag = await Flags(lambda: request.app[SHADOW].catalog).all(await _context(request))
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
        path_fields={"key": FlagKey}, body=FlagRequest, answers={200: Flag, 400: FlagFailure, 404: FlagNotFound},
        problems=(_LIMITED, _AWAY), key_field="x-api-key",
    ),
    Route(
        "POST", "/ofrep/v1/evaluate/flags", evaluate_flags, summary="Evaluate all flags (OFREP 0.3.0)", tag="flags",
        query=dict.fromkeys(_MARKS, ConfigMark), body=FlagRequest,
        answers={200: FlagList, 304: None, 400: BulkFailure}, problems=(_LIMITED, _AWAY), key_field="x-api-key", etag=True,
    ),
    Route(
        "POST", "/v1/track", track_event, summary="Count what a unit did in every experiment that waits for it", tag="flags",
        body=TrackedEvent, answers={200: Tracked}, key_field="x-api-key",
        problems=(_LIMITED, (429, "too_many_events"), (422, "unknown_unit"), _AWAY),
    ),
)  # fmt: skip
