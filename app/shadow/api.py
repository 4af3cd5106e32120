"""/v1/experiments over HTTP: routes only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiohttp import web

from app.access.api import ACCESS, key_of
from app.access.limits import limited_problem
from app.access.matrix import RIGHTS
from app.shadow.analysis import Analysis
from app.shadow.counters import EventsFull
from app.shadow.opening import Shadow
from app.shadow.wire import (
    OUTCOMES_BODY_MAX_BYTES,
    AssignCall,
    Assigned,
    CanaryCall,
    Deploy,
    Draws,
    DrawSeed,
    ExperimentChange,
    ExperimentPage,
    ExperimentView,
    NewExperiment,
    Outcomes,
    RollbackCall,
    Taken,
)
from app.turns import answer_from_task
from app.web.answers import Answer
from app.web.body import Body
from app.web.fields import Cursor, Limit, Name
from app.web.problems import Problem, starting
from app.web.routes import Handled, Route, cursor, if_match, json_answer, limit, query

if TYPE_CHECKING:
    from app.shadow.calls import ExperimentCalls
    from app.web.edge import Done
    from app.web.request import Request

SHADOW: Final = web.AppKey("shadow", Shadow)
DRAWS_DEFAULT: Final = 10_000
FULL_RETRY_S: Final = 3_600  # events are forgotten by the day; an hour later there may be room

_NEW: Final = Body(NewExperiment)
_CHANGE: Final = Body(ExperimentChange)
_ASSIGN: Final = Body(AssignCall)
_OUTCOMES: Final = Body(Outcomes, limit_bytes=OUTCOMES_BODY_MAX_BYTES)
_DEPLOY: Final = Body(Deploy)
_ROLLBACK: Final = Body(RollbackCall)
_CANARY: Final = Body(CanaryCall)


def _calls(request: Request) -> ExperimentCalls:
    calls = request.app[SHADOW].calls
    if calls is None:
        raise starting()
    return calls


def _actor(request: Request) -> tuple[str, str]:
    """Return id and role of the key that calls."""
    key = key_of(request)
    return key.key_id, key.role


def _nothing() -> AssertionError:
    return AssertionError("neither an answer nor an error")


def _answer(value: msgspec.Struct, status: int = 200) -> Handled:
    return json_answer(msgspec.json.encode(value), status=status)


def _shown(value: ExperimentView, status: int = 200) -> Handled:
    return json_answer(msgspec.json.encode(value), status=status, etag=value.version)


async def create_experiment(request: Request) -> Handled:
    """POST /v1/experiments."""
    body = await _NEW.read(request)
    return _shown(await _calls(request).create(body, _actor(request)[0]), 201)


async def list_experiments(request: Request) -> Handled:
    """GET /v1/experiments."""
    count, after = limit(request), cursor(request) or ""
    return _answer(_calls(request).page(after, count))


async def read_experiment(request: Request) -> Handled:
    """GET /v1/experiments/{name}."""
    return _shown(await _calls(request).read(request.match_info["name"]))


async def change_experiment(request: Request) -> Handled:
    """PATCH /v1/experiments/{name}."""
    body, version = await _CHANGE.read(request), if_match(request)
    return _shown(await _calls(request).change(request.match_info["name"], body, _actor(request)[0], version))


async def archive_experiment(request: Request) -> Handled:
    """DELETE /v1/experiments/{name}."""
    version = if_match(request)
    return _shown(await _calls(request).archive(request.match_info["name"], _actor(request)[0], version))


def too_many_events() -> Problem:
    """Return the 429 for outcomes that an experiment cannot remember one by one."""
    return Problem(
        429, "too_many_events", "More outcomes came in a day than can be told from repetitions.",
        headers={"Retry-After": str(FULL_RETRY_S)},
    )  # fmt: skip


async def take(request: Request, tokens: int = 1) -> None:
    """Take tokens from the bucket of the key that calls, if it has one. Raises Problem 429."""
    access = request.app[ACCESS]
    buckets = access.rates.buckets(key_of(request), None)
    if buckets and access.limits is not None:
        made = await access.limits.check(buckets, tokens)
        if made.refused is not None:
            raise limited_problem(made)


class _Assign:
    """POST /v1/experiments/{name}/assign: without a task for a request that is whole (`app.web.edge.Prompt`)."""

    async def __call__(self, request: Request) -> Handled:
        return await self._assigned(request, await _ASSIGN.read(request))

    def begin(self, request: Request, done: Done) -> None:
        body, calls = _ASSIGN.take(request), _calls(request)
        if request.app[ACCESS].rates.buckets(key_of(request), None):
            answer_from_task(self._assigned(request, body), lambda answer, error: done(answer or error or _nothing()))
            return

        def reply(given: Assigned | None, error: Exception | None) -> None:
            done((error or _nothing()) if given is None else _answer(given))

        calls.assign_soon(request.match_info["name"], body, reply)

    async def _assigned(self, request: Request, body: AssignCall) -> Handled:
        await take(request)
        return _answer(await _calls(request).assign(request.match_info["name"], body))


async def take_outcomes(request: Request) -> Handled:
    """POST /v1/experiments/{name}/outcomes."""
    body = await _OUTCOMES.read(request)
    await take(request, 1 if body.outcomes is None else len(body.outcomes))
    try:
        return _answer(await _calls(request).outcomes(request.match_info["name"], body))
    except EventsFull:
        raise too_many_events() from None


async def read_analysis(request: Request) -> Handled:
    """GET /v1/experiments/{name}/analysis."""
    await take(request)
    draws = query(request, "draws", Draws, DRAWS_DEFAULT)
    seed = query(request, "seed", DrawSeed, 0)
    return _answer(await _calls(request).analysis(request.match_info["name"], draws, seed))


async def read_plot(request: Request) -> Handled:
    """GET /v1/experiments/{name}/plot.svg."""
    text = await _calls(request).plot(request.match_info["name"])
    return Answer(text.encode(), content_type="image/svg+xml")


async def deploy(request: Request) -> Handled:
    """POST /v1/experiments/{name}/deploy."""
    body = await _DEPLOY.read(request)
    return _shown(await _calls(request).deploy(request.match_info["name"], body, *_actor(request)))


async def roll_back(request: Request) -> Handled:
    """POST /v1/experiments/{name}/rollback."""
    body = await _ROLLBACK.read(request)
    return _shown(await _calls(request).roll_back(request.match_info["name"], body, _actor(request)[0]))


async def change_canary(request: Request) -> Handled:
    """POST /v1/experiments/{name}/canary."""
    body = await _CANARY.read(request)
    return _shown(await _calls(request).canary(request.match_info["name"], body, _actor(request)[0]))


_PATH: Final[dict[str, Any]] = {"name": Name}
_PAGE: Final[dict[str, Any]] = {"limit": Limit, "cursor": Cursor}
_AWAY: Final = (503, "unavailable")
_NONE: Final = (404, "no_experiment")
_ARCHIVED: Final = (409, "experiment_archived")
_OVER: Final = (_ARCHIVED, (409, "experiment_rolled_back"))
_ENDED: Final = (*_OVER, (409, "experiment_deployed"))
_LIMITED: Final = (429, "rate_limited")
_BUSY: Final = (409, "version_conflict")
_ONE: Final = "/v1/experiments/{name}"


def _route(method: Any, path: str, handler: Any, summary: str, *problems: tuple[int, str], **options: Any) -> Route:
    """Return a route with what all of them share."""
    options.setdefault("answers", {200: ExperimentView})
    etag = ExperimentView in options["answers"].values()
    fields = _PATH if "{name}" in path else {}
    known = (_NONE, _AWAY) if fields else (_AWAY,)
    roles = RIGHTS[method, path].roles
    return Route(method, path, handler, summary=summary, tag="experiments", path_fields=fields, etag=etag, roles=roles,
                 problems=(*known, *problems), **options)  # fmt: skip


EXPERIMENT_ROUTES: Final = (
    _route("POST", "/v1/experiments", create_experiment, "Make an experiment", (409, "experiment_exists"),
           (409, "too_many_experiments"), body=NewExperiment, answers={201: ExperimentView}),
    _route("GET", "/v1/experiments", list_experiments, "List experiments, archived ones too", query=_PAGE,
           answers={200: ExperimentPage}),
    _route("GET", _ONE, read_experiment, "Read an experiment"),
    _route("PATCH", _ONE, change_experiment, "Pause, resume, change the coverage", *_ENDED, _BUSY,
           (409, "too_many_changes"), body=ExperimentChange),
    _route("DELETE", _ONE, archive_experiment, "Archive an experiment", _BUSY),
    _route("POST", _ONE + "/assign", _Assign(), "Tell what a unit gets: always the same", _LIMITED, body=AssignCall,
           answers={200: Assigned}),
    _route("POST", _ONE + "/outcomes", take_outcomes, "Report what became of units; answered once counted", _ARCHIVED,
           _LIMITED, (422, "unknown_unit"), (429, "too_many_events"), body=Outcomes, answers={200: Taken}),
    _route("GET", _ONE + "/analysis", read_analysis, "What the outcomes say", _LIMITED,
           query={"draws": Draws, "seed": DrawSeed}, answers={200: Analysis}),
    _route("GET", _ONE + "/plot.svg", read_plot, "Plot the posteriors", answers={200: None}, media_type="image/svg+xml"),
    _route("POST", _ONE + "/deploy", deploy, "Give all units one variant, if that is safe", *_OVER, _BUSY,
           (409, "unsafe_deployment"), body=Deploy),
    _route("POST", _ONE + "/rollback", roll_back, "Give all units the control, for good", _ARCHIVED, _BUSY,
           body=RollbackCall),
    _route("POST", _ONE + "/canary", change_canary, "Pause, resume, advance or approve a canary", *_ENDED, _BUSY,
           (409, "no_canary"), (409, "canary_waits"), body=CanaryCall),
)  # fmt: skip
