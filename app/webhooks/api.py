"""/v1/webhooks over HTTP: routes only."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiohttp import web

from app.web.body import Body
from app.web.fields import Cursor, Limit
from app.web.problems import invalid, starting
from app.web.routes import Answer, Handled, Route, cursor, json_answer, limit
from app.webhooks.calls import (
    ENDPOINT_PATTERN,
    DeliveryPage,
    EndpointId,
    EndpointPage,
    EndpointView,
    MadeEndpoint,
    NewEndpoint,
    NewSecret,
    SecretRotation,
)
from app.webhooks.opening import Webhooks
from app.webhooks.outbox import DELIVERY_END

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.web.request import Request
    from app.webhooks.calls import WebhookCalls

WEBHOOKS: Final = web.AppKey("webhooks", Webhooks)

_NEW_ENDPOINT: Final = Body(NewEndpoint)
_ROTATION: Final = Body(SecretRotation, optional=True)
_endpoint_id = re.compile(ENDPOINT_PATTERN)
_delivery_id = re.compile(r"[1-9][0-9]{0,17}\Z")


def _calls(request: Request) -> WebhookCalls:
    calls = request.app[WEBHOOKS].calls
    if calls is None:
        raise starting()
    return calls


def _actor(request: Request) -> str:
    if request.principal is None:
        raise AssertionError("the edge lets no request without a key into a closed route")
    return request.principal.key_id


def _tenants(request: Request) -> Sequence[str] | None:
    """Return the tenants that the calling key is limited to, None for all."""
    tenants = getattr(request.principal, "tenants", None)
    return None if tenants is None else sorted(tenants)


def _answer(value: msgspec.Struct, status: int = 200) -> Handled:
    return json_answer(msgspec.json.encode(value), status=status)


def _after(request: Request, shape: re.Pattern[str]) -> str | None:
    text = cursor(request)
    if text is not None and shape.match(text) is None:
        raise invalid("?cursor", "Expected the next_cursor of the page before")
    return text


async def create_endpoint(request: Request) -> Handled:
    """POST /v1/webhooks."""
    body = await _NEW_ENDPOINT.read(request)
    return _answer(await _calls(request).create(body, _actor(request), _tenants(request)), 201)


async def list_endpoints(request: Request) -> Handled:
    """GET /v1/webhooks."""
    count, after = limit(request), _after(request, _endpoint_id) or ""
    return _answer(EndpointPage(*await _calls(request).page(_tenants(request), after, count)))


async def read_endpoint(request: Request) -> Handled:
    """GET /v1/webhooks/{endpoint_id}."""
    return _answer(await _calls(request).read(request.match_info["endpoint_id"], _tenants(request)))


async def delete_endpoint(request: Request) -> Handled:
    """DELETE /v1/webhooks/{endpoint_id}."""
    await _calls(request).delete(request.match_info["endpoint_id"], _actor(request), _tenants(request))
    return Answer(b"", status=204)


async def enable_endpoint(request: Request) -> Handled:
    """POST /v1/webhooks/{endpoint_id}/enable."""
    calls = _calls(request)
    return _answer(await calls.enable(request.match_info["endpoint_id"], _actor(request), _tenants(request)))


async def rotate_secret(request: Request) -> Handled:
    """POST /v1/webhooks/{endpoint_id}/rotate."""
    body = await _ROTATION.read(request)
    endpoint_id = request.match_info["endpoint_id"]
    return _answer(await _calls(request).rotate(endpoint_id, body, _actor(request), _tenants(request)))


async def list_deliveries(request: Request) -> Handled:
    """GET /v1/webhooks/{endpoint_id}/deliveries."""
    count, before = limit(request), _after(request, _delivery_id)
    found, following = await _calls(request).deliveries(
        request.match_info["endpoint_id"], _tenants(request), DELIVERY_END if before is None else int(before), count
    )
    return _answer(DeliveryPage(found, None if following is None else str(following)))


_PATH: Final[dict[str, Any]] = {"endpoint_id": EndpointId}
_PAGE: Final[dict[str, Any]] = {"limit": Limit, "cursor": Cursor}
_AWAY: Final = (503, "unavailable")
_NONE: Final = (404, "no_webhook")

WEBHOOK_ROUTES: Final = (
    Route(
        "POST", "/v1/webhooks", create_endpoint, summary="Make a webhook endpoint; its secret is shown this once",
        tag="webhooks", body=NewEndpoint, answers={201: MadeEndpoint},
        problems=((404, "no_account"), (409, "too_many_webhooks"), _AWAY),
    ),
    Route(
        "GET", "/v1/webhooks", list_endpoints, summary="List webhook endpoints", tag="webhooks", query=_PAGE,
        answers={200: EndpointPage}, problems=(_AWAY,),
    ),
    Route(
        "GET", "/v1/webhooks/{endpoint_id}", read_endpoint, summary="Read a webhook endpoint", tag="webhooks",
        path_fields=_PATH, answers={200: EndpointView}, problems=(_NONE, _AWAY),
    ),
    Route(
        "DELETE", "/v1/webhooks/{endpoint_id}", delete_endpoint, summary="Take a webhook endpoint away", tag="webhooks",
        path_fields=_PATH, answers={204: None}, problems=(_NONE, _AWAY),
    ),
    Route(
        "POST", "/v1/webhooks/{endpoint_id}/enable", enable_endpoint, summary="Send to a disabled endpoint again",
        tag="webhooks", path_fields=_PATH, answers={200: EndpointView}, problems=(_NONE, _AWAY),
    ),
    Route(
        "POST", "/v1/webhooks/{endpoint_id}/rotate", rotate_secret, summary="Rotate the secret; both sign for a while",
        tag="webhooks", path_fields=_PATH, body=SecretRotation, body_optional=True, answers={200: NewSecret},
        problems=(_NONE, (409, "version_conflict"), _AWAY),
    ),
    Route(
        "GET", "/v1/webhooks/{endpoint_id}/deliveries", list_deliveries, summary="List deliveries, newest first",
        tag="webhooks", path_fields=_PATH, query=_PAGE, answers={200: DeliveryPage}, problems=(_NONE, _AWAY),
    ),
)  # fmt: skip
