"""The calls of /v1/webhooks: from a decoded body to an answer. HTTP is around them, Postgres below."""

from __future__ import annotations

import secrets
import string
from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta, Struct

from app.clock import ms_of, time_text
from app.web.fields import Description, Input, Name
from app.web.problems import Problem, invalid
from app.webhooks.outbox import DELIVERY_END, Endpoint, Outbox
from app.webhooks.signature import SigningKeys, secret_text
from app.webhooks.target import URL_MAX, TargetRefused, TargetRules, check_url

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

TYPES_MAX: Final = 50  # types that one endpoint names; more is all of them
OVERLAP_DEFAULT_S: Final = 86_400  # a day for the receiver to take the new secret
OVERLAP_MAX_S: Final = 7 * 86_400
ID_CHARS: Final = 16
_LETTERS: Final = string.digits + string.ascii_letters

ENDPOINT_PATTERN: Final = rf"^whe_[0-9A-Za-z]{{{ID_CHARS}}}\Z"
EndpointId = Annotated[str, Meta(pattern=ENDPOINT_PATTERN, description="Id of a webhook endpoint.")]
MessageType = Annotated[
    str, Meta(pattern=r"^[a-z0-9_]{1,40}(\.[a-z0-9_]{1,40}){0,3}\Z", description="e.g. credits.low_balance")
]


class NewEndpoint(Input, frozen=True):
    """Body of POST /v1/webhooks. Without `types` every type is sent; without `tenant_id` those of all tenants."""

    url: Annotated[str, Meta(min_length=1, max_length=URL_MAX)]
    tenant_id: Name | None = None
    types: Annotated[list[MessageType], Meta(min_length=1, max_length=TYPES_MAX)] | None = None
    description: Description | None = None


class SecretRotation(Input, frozen=True):
    """Body of POST /v1/webhooks/{endpoint_id}/rotate: how long messages are signed with both secrets."""

    overlap_seconds: Annotated[int, Meta(ge=0, le=OVERLAP_MAX_S)] = OVERLAP_DEFAULT_S


class EndpointView(Struct, kw_only=True):
    """An endpoint as it is listed. `disabled_for`: `gone` (it answered 410) or `exhausted` (ten attempts failed)."""

    endpoint_id: str
    url: str
    tenant_id: str | None
    types: list[str] | None
    description: str | None
    created_at: str
    created_by: str
    disabled_at: str | None
    disabled_for: str | None


class MadeEndpoint(EndpointView, kw_only=True):
    """An endpoint right after it was made: `secret` is shown this once."""

    secret: str


class NewSecret(Struct):
    """The next secret of an endpoint, shown this once; `old_secret_until` is null when the old one ended at once."""

    endpoint_id: str
    secret: str
    old_secret_until: str | None

    def __repr__(self) -> str:
        """Show no secret."""
        return f"NewSecret({self.endpoint_id!r})"


class DeliveryView(Struct, kw_only=True):
    """One message for one endpoint, and what became of it so far."""

    delivery_id: int
    message_id: str
    tenant_id: str
    type: str
    state: str
    attempts: int
    created_at: str
    next_at: str
    last_status: int | None
    last_error: str | None
    closed_at: str | None


class EndpointPage(Struct):
    """A page of endpoints."""

    data: list[EndpointView]
    next_cursor: str | None


class DeliveryPage(Struct):
    """A page of deliveries, newest first."""

    data: list[DeliveryView]
    next_cursor: str | None


class WebhookCalls:
    """What the calls need, and the calls.

    Each takes the id of the key that calls, and `tenants`, the tenants that the key is limited to, or None: an
    endpoint of another tenant, or of all, does not exist for a limited key.
    """

    def __init__(self, outbox: Outbox, keys: SigningKeys, rules: TargetRules) -> None:
        """`rules` say which URLs may be endpoints."""
        self._outbox = outbox
        self._keys = keys
        self._rules = rules

    async def create(self, body: NewEndpoint, actor: str, tenants: Sequence[str] | None) -> MadeEndpoint:
        """POST /v1/webhooks. 201.

        refuses  403 `forbidden` for all tenants' messages with a limited key; 404 `no_account` for a tenant that is not
        the key's; 409 `too_many_webhooks`; 422 at `/url`
        """
        if tenants is not None and body.tenant_id is None:
            raise Problem(403, "forbidden", "The key is limited to tenants: name one of them.")
        if tenants is not None and body.tenant_id not in tenants:
            raise Problem(404, "no_account", "There is no account of this tenant; create it with POST /v1/accounts.")
        try:
            check_url(body.url, self._rules)
        except TargetRefused as error:
            raise invalid("/url", str(error)) from None
        endpoint_id = "whe_" + "".join(secrets.choice(_LETTERS) for _ in range(ID_CHARS))
        made = await self._outbox.create(
            endpoint_id, body.tenant_id, body.url, body.types, body.description, actor, self._keys.current_id
        )
        if made is None:
            detail = "There are as many endpoints as there can be, of this tenant or in all; delete one first."
            raise Problem(409, "too_many_webhooks", detail)
        secret = self._keys.secret(made.signing_key_id, endpoint_id, made.secret_version)
        return MadeEndpoint(**_fields(made), secret=secret_text(secret))

    async def page(self, tenants: Sequence[str] | None, after: str, limit: int) -> tuple[list[EndpointView], str | None]:
        """GET /v1/webhooks: endpoints by id from the first beyond `after`; and the next `after`."""
        found = await self._outbox.endpoints(after, limit + 1, tenants)
        return [view(one) for one in found[:limit]], found[limit - 1].endpoint_id if len(found) > limit else None

    async def read(self, endpoint_id: str, tenants: Sequence[str] | None) -> EndpointView:
        """GET /v1/webhooks/{endpoint_id}. refuses  404 `no_webhook`."""
        return view(await self._visible(endpoint_id, tenants))

    async def delete(self, endpoint_id: str, actor: str, tenants: Sequence[str] | None) -> None:
        """DELETE /v1/webhooks/{endpoint_id}: 204. What waits for it is given up. refuses  404 `no_webhook`."""
        await self._visible(endpoint_id, tenants)
        await self._outbox.delete(endpoint_id, actor)

    async def enable(self, endpoint_id: str, actor: str, tenants: Sequence[str] | None) -> EndpointView:
        """POST /v1/webhooks/{endpoint_id}/enable: send messages again, from now on. refuses  404 `no_webhook`."""
        await self._visible(endpoint_id, tenants)
        await self._outbox.enable(endpoint_id, actor)
        return await self.read(endpoint_id, tenants)

    async def rotate(self, endpoint_id: str, body: SecretRotation, actor: str, tenants: Sequence[str] | None) -> NewSecret:
        """POST /v1/webhooks/{endpoint_id}/rotate: the next secret; meanwhile both sign. 200.

        refuses  404 `no_webhook`; 409 `version_conflict` when another rotation was faster
        """
        endpoint = await self._visible(endpoint_id, tenants)
        rotated = await self._outbox.rotate(endpoint, self._keys.current_id, float(body.overlap_seconds), actor)
        if rotated is None:
            raise Problem(409, "version_conflict", "The secret has been rotated meanwhile; read it there.")
        secret = self._keys.secret(self._keys.current_id, endpoint_id, endpoint.secret_version + 1)
        return NewSecret(endpoint_id, secret_text(secret), _text(rotated[0]))

    async def deliveries(
        self, endpoint_id: str, tenants: Sequence[str] | None, before: int = DELIVERY_END, limit: int = 100
    ) -> tuple[list[DeliveryView], int | None]:
        """GET /v1/webhooks/{endpoint_id}/deliveries: newest first; and the next `before`. refuses  404 `no_webhook`."""
        await self._visible(endpoint_id, tenants)
        rows = await self._outbox.deliveries(endpoint_id, before, limit + 1)
        views = [
            DeliveryView(**{name: _shown(row[name]) for name in DeliveryView.__struct_fields__}) for row in rows[:limit]
        ]
        return views, views[-1].delivery_id if len(rows) > limit else None

    async def _visible(self, endpoint_id: str, tenants: Sequence[str] | None) -> Endpoint:
        endpoint = await self._outbox.find(endpoint_id)
        if endpoint is None or (tenants is not None and endpoint.tenant_id not in tenants):
            raise Problem(404, "no_webhook", "There is no webhook endpoint with this id.")
        return endpoint


def view(endpoint: Endpoint) -> EndpointView:
    """Return an endpoint as it is listed."""
    return EndpointView(**_fields(endpoint))


def _fields(endpoint: Endpoint) -> dict[str, Any]:
    return {name: _shown(getattr(endpoint, name)) for name in EndpointView.__struct_fields__}


def _shown(value: Any) -> Any:
    return _text(value) if hasattr(value, "tzinfo") else value


def _text(at: datetime | None) -> str | None:
    return None if at is None else time_text(ms_of(at))
