"""/v1/rules over HTTP: routes only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiohttp import web

from app.access.api import key_of
from app.shadow.api import take
from app.shadow.rules_opening import Rules
from app.shadow.rules_wire import (
    Answered,
    Evaluation,
    NewRule,
    Promoted,
    Promotion,
    Report,
    RuleChange,
    RulePage,
    RuleView,
    TrialNumber,
)
from app.web.body import Body
from app.web.fields import Cursor, Limit, Name, check_name
from app.web.problems import invalid, starting
from app.web.routes import Answer, Handled, Route, cursor, if_match, json_answer, limit, path, query

if TYPE_CHECKING:
    from app.shadow.rules_calls import RuleCalls
    from app.web.request import Request

RULES: Final = web.AppKey("rules", Rules)

_NEW_RULE: Final = Body(NewRule)
_CHANGE: Final = Body(RuleChange)
_PROMOTION: Final = Body(Promotion, optional=True)
_EVALUATION: Final = Body(Evaluation)


def _calls(request: Request) -> RuleCalls:
    calls = request.app[RULES].calls
    if calls is None:
        raise starting()
    return calls


def _caller(request: Request) -> tuple[str, bool]:
    """Return the id of the calling key, and whether it is an admin's."""
    key = key_of(request)
    return key.key_id, key.role == "admin"


def _rule_answer(view: RuleView, status: int = 200) -> Handled:
    return json_answer(msgspec.json.encode(view), status=status, etag=view.version)


async def create_rule(request: Request) -> Handled:
    """POST /v1/rules."""
    body = await _NEW_RULE.read(request)
    return _rule_answer(await _calls(request).create(body, _caller(request)[0]), 201)


async def list_rules(request: Request) -> Handled:
    """GET /v1/rules."""
    count, after = limit(request), cursor(request)
    if after is not None and not check_name(after):
        raise invalid("?cursor", "Expected the next_cursor of the page before")
    return json_answer(msgspec.json.encode(RulePage(*await _calls(request).page(after or "", count))))


async def read_rule(request: Request) -> Handled:
    """GET /v1/rules/{name}."""
    return _rule_answer(await _calls(request).read(path(request, "name")))


async def change_rule(request: Request) -> Handled:
    """PATCH /v1/rules/{name}."""
    body, revision = await _CHANGE.read(request), if_match(request)
    return _rule_answer(await _calls(request).change(path(request, "name"), body, revision, _caller(request)[0]))


async def delete_rule(request: Request) -> Handled:
    """DELETE /v1/rules/{name}."""
    await _calls(request).delete(path(request, "name"), if_match(request), _caller(request)[0])
    return Answer(b"", status=204)


async def promote_version(request: Request) -> Handled:
    """POST /v1/rules/{name}/promote."""
    body, revision = await _PROMOTION.read(request), if_match(request)
    actor, is_admin = _caller(request)
    promoted = await _calls(request).promote(path(request, "name"), body, revision, actor, is_admin=is_admin)
    return json_answer(msgspec.json.encode(promoted), etag=promoted.rule.version)


async def evaluate_rule(request: Request) -> Handled:
    """POST /v1/rules/{name}/evaluate."""
    body = await _EVALUATION.read(request)
    await take(request)
    return json_answer(msgspec.json.encode(await _calls(request).evaluate(path(request, "name"), body.input)))


async def read_report(request: Request) -> Handled:
    """GET /v1/rules/{name}/report."""
    await take(request)
    trial = query(request, "trial", TrialNumber, None)
    return json_answer(msgspec.json.encode(await _calls(request).report(path(request, "name"), trial)))


_PATH: Final[dict[str, Any]] = {"name": Name}
_AWAY: Final = (503, "unavailable")
_NONE: Final = (404, "no_rule")
_LIMITED: Final = (429, "rate_limited")
_CONFLICT: Final = (409, "version_conflict")

RULE_ROUTES: Final = (
    Route(
        "POST", "/v1/rules", create_rule, summary="Make a rule of named versions, a champion and a challenger", tag="rules",
        body=NewRule, answers={201: RuleView}, problems=((409, "rule_exists"), (409, "too_many_rules"), _AWAY), etag=True,
    ),
    Route(
        "GET", "/v1/rules", list_rules, summary="List rules by name", tag="rules", query={"limit": Limit, "cursor": Cursor},
        answers={200: RulePage}, problems=(_AWAY,),
    ),
    Route(
        "GET", "/v1/rules/{name}", read_rule, summary="Read a rule", tag="rules", path_fields=_PATH,
        answers={200: RuleView}, problems=(_NONE, _AWAY), etag=True,
    ),
    Route(
        "PATCH", "/v1/rules/{name}", change_rule, summary="Add versions, name a challenger, change how they are compared",
        tag="rules", path_fields=_PATH, body=RuleChange, answers={200: RuleView},
        problems=(_NONE, _CONFLICT, (409, "too_many_versions"), _AWAY), etag=True,
    ),
    Route(
        "DELETE", "/v1/rules/{name}", delete_rule, summary="Take a rule away", tag="rules", path_fields=_PATH,
        answers={204: None}, problems=(_NONE, _CONFLICT, _AWAY), etag=True,
    ),
    Route(
        "POST", "/v1/rules/{name}/promote", promote_version, summary="Make the challenger, or an earlier champion, champion",
        tag="rules", path_fields=_PATH, body=Promotion, body_optional=True, answers={200: Promoted}, etag=True,
        problems=(_NONE, _CONFLICT, (409, "no_challenger"), (409, "unsafe_deployment"), (403, "forbidden"), _AWAY),
    ),
    Route(
        "POST", "/v1/rules/{name}/evaluate", evaluate_rule, summary="Get the champion's answer to an input", tag="rules",
        path_fields=_PATH, body=Evaluation, answers={200: Answered}, problems=(_NONE, (422, "rule_failed"), _LIMITED, _AWAY),
    ),
    Route(
        "GET", "/v1/rules/{name}/report", read_report, summary="How the challenger's answers differ from the champion's",
        tag="rules", path_fields=_PATH, query={"trial": TrialNumber}, answers={200: Report},
        problems=(_NONE, _LIMITED, _AWAY),
    ),
)  # fmt: skip
