"""Endpoints and deliveries in Postgres: what is put out, claimed, delivered, postponed, given up."""

from __future__ import annotations

from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec
import orjson

from app.clock import time_text
from app.db.sql import query

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    import asyncpg

    from app.db.statements import Statements
    from app.webhooks.post import Outcome

ENDPOINTS_MAX: Final = 10_000  # a claim looks at each of them
ENDPOINTS_OF_TENANT_MAX: Final = 100  # and of those for all tenants: each gets a row of every message
SPREAD_MAX: Final = 5_000  # deliveries of one statement: about 0.2 s
BODY_MAX_BYTES: Final = 20_000  # the specification: keep payloads below 20 kB
KEEP_DAYS: Final = 30  # how long closed deliveries can be looked at
DELIVERY_END: Final = 1 << 62  # above every delivery id

BACKLOG_MAX: Final = 100_000  # deliveries that are counted; how many more there are changes nothing

_COUNT_PENDING: Final = """
SELECT count(*) FROM (
  SELECT FROM webhook_messages UNION ALL SELECT FROM webhook_deliveries WHERE state = 'pending' LIMIT $1) AS due
"""
_FORGET: Final = "DELETE FROM webhook_deliveries WHERE state <> 'pending' AND closed_at < now() - make_interval(days => $1)"
# Made in the moment in which the endpoint was deleted or disabled: nobody will ever claim them.
_CLOSE_STRAYS: Final = """
UPDATE webhook_deliveries AS d
SET state = 'failed', closed_at = now(), last_error = CASE WHEN e.deleted_at IS NULL THEN 'disabled' ELSE 'deleted' END
FROM webhook_endpoints AS e
WHERE d.state = 'pending' AND e.endpoint_id = d.endpoint_id AND (e.deleted_at IS NOT NULL OR e.disabled_at IS NOT NULL)
RETURNING d.delivery_id
"""


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One row of webhook_endpoints."""

    endpoint_id: str
    tenant_id: str | None
    url: str
    types: list[str] | None
    description: str | None
    created_at: datetime
    created_by: str
    signing_key_id: str
    secret_version: int
    old_secret_until: datetime | None
    disabled_at: datetime | None
    disabled_for: str | None


class Claim(NamedTuple):
    """A delivery that this process is to attempt now; `attempts` counts this attempt too.

    owner  the tenant of the endpoint; the endpoint itself if it is for all tenants
    """

    delivery_id: int
    endpoint_id: str
    message_id: str
    body: str
    attempts: int
    url: str
    signing_key_id: str
    secret_version: int
    old_secret_signs: bool
    owner: str


class Portion(NamedTuple):
    """What one endpoint and one owner may have under way in a process, and what of that they have.

    of_endpoint     deliveries of one endpoint in one claim; one of `busy_endpoints` gets none
    of_owner        attempts of one owner, those of `busy_owners` (attempts under way by owner) included
    """

    of_endpoint: int
    of_owner: int
    busy_endpoints: Sequence[str] = ()
    busy_owners: Mapping[str, int] = MappingProxyType({})


class Spread(NamedTuple):
    """How many messages became how many deliveries."""

    messages: int
    deliveries: int


class Message(NamedTuple):
    """What is told: `message_id` is the same for every attempt and names the event, so that it goes out once.

    message_id  1 to 100 letters, digits, `_` or `-`: it stands in the signed content, where a `.` separates
    type        words with dots, for example `credits.low_balance`
    at_ms       when it happened, Unix ms
    data        JSON value; the whole body must stay below BODY_MAX_BYTES
    """

    message_id: str
    tenant_id: str
    type: str
    at_ms: int
    data: dict[str, Any]

    @property
    def body(self) -> str:
        """The JSON text that is sent: type, timestamp, data. Raises ValueError if it is too long."""
        body = orjson.dumps({"type": self.type, "timestamp": time_text(self.at_ms), "data": self.data})
        if len(body) > BODY_MAX_BYTES:
            raise ValueError(f"a webhook body of {len(body)} bytes is above {BODY_MAX_BYTES}")
        return body.decode()


async def put_out(fetch: Callable[..., Awaitable[list[asyncpg.Record]]], message: Message) -> None:
    """Put a message out, to whom `Outbox.spread` will find to want it. Twice is once.

    fetch  `connection.fetch` of the transaction that the message tells of, or `Statements.rows`
    """
    await fetch(query("put_out_message"), message.message_id, message.tenant_id, message.type, message.body)


class Outbox:
    """What the deliverer and the calls do with endpoints and deliveries. Raises what asyncpg raises, and TimeoutError."""

    def __init__(self, statements: Statements) -> None:
        """`statements` reach Postgres as the server's role."""
        self._statements = statements

    async def spread(self) -> Spread:
        """Make deliveries of messages that were put out, oldest first, at most SPREAD_MAX; nothing of none is lost."""
        rows = await self._statements.rows(query("spread_messages"), SPREAD_MAX)
        return Spread(*rows[0])

    async def claim(self, count: int, portion: Portion, lease_s: float) -> list[Claim]:
        """Take at most `count` due deliveries for `lease_s`, and of each endpoint and owner no more than their portion."""
        rows = await self._statements.rows(
            query("claim_deliveries"), count, portion.of_endpoint, list(portion.busy_endpoints), lease_s, portion.of_owner,
            list(portion.busy_owners), list(portion.busy_owners.values()),
        )  # fmt: skip
        return [Claim(*row) for row in rows]

    async def close(self, claim: Claim, state: str, outcome: Outcome) -> None:
        """Note that a delivery is `delivered` or `failed`."""
        await self._statements.rows(
            query("close_delivery"), claim.delivery_id, claim.attempts, state, outcome.status, outcome.error
        )

    async def postpone(self, claim: Claim, delay_s: float, outcome: Outcome) -> None:
        """Note when the next attempt is due; if the endpoint asked for a pause, nothing is sent to it meanwhile."""
        await self._statements.rows(
            query("postpone_delivery"), claim.delivery_id, claim.attempts, delay_s, outcome.status, outcome.error,
            outcome.retry_after_s,
        )  # fmt: skip

    async def disable(self, endpoint_id: str, reason: str) -> bool:
        """Send an endpoint nothing more; return whether this call did it."""
        details = {"endpoint_id": endpoint_id, "reason": reason}
        rows = await self._statements.rows(query("disable_endpoint"), endpoint_id, reason, orjson.dumps(details).decode())
        return bool(rows)

    async def count_pending(self) -> int:
        """Return how many messages and deliveries wait, BACKLOG_MAX for more."""
        rows = await self._statements.rows(_COUNT_PENDING, BACKLOG_MAX)
        return int(rows[0][0])

    async def forget(self) -> None:
        """Remove deliveries that were closed more than KEEP_DAYS ago; give up those of endpoints that get nothing more."""
        await self._statements.rows(_CLOSE_STRAYS)
        await self._statements.rows(_FORGET, KEEP_DAYS)

    async def create(
        self, endpoint_id: str, tenant_id: str | None, url: str, types: Sequence[str] | None, description: str | None,
        maker: str, signing_key_id: str,
    ) -> Endpoint | None:  # fmt: skip
        """Make an endpoint; None when there are ENDPOINTS_MAX, or ENDPOINTS_OF_TENANT_MAX for the same tenant or for all."""
        listed = None if types is None else sorted(set(types))
        # A path may hold a secret of the customer's own, and the chain forgets nothing: only the origin enters it.
        origin = urlsplit(url)._replace(path="", query="").geturl()
        details = {"actor": maker, "endpoint_id": endpoint_id, "tenant_id": tenant_id, "origin": origin, "types": listed}
        rows = await self._statements.rows(
            query("create_endpoint"), endpoint_id, tenant_id, url, listed, description, maker, signing_key_id,
            ENDPOINTS_MAX, orjson.dumps(details).decode(), ENDPOINTS_OF_TENANT_MAX,
        )  # fmt: skip
        return _endpoint(rows[0]) if rows else None

    async def endpoints(self, after: str, limit: int, tenants: Sequence[str] | None = None) -> list[Endpoint]:
        """Return endpoints by id from the first beyond `after`, only those of these tenants."""
        rows = await self._statements.rows(
            query("endpoints"), after, limit, None, None if tenants is None else list(tenants)
        )
        return [_endpoint(row) for row in rows]

    async def find(self, endpoint_id: str) -> Endpoint | None:
        """Return an endpoint, unless it was deleted."""
        rows = await self._statements.rows(query("endpoints"), "", 1, endpoint_id, None)
        return _endpoint(rows[0]) if rows else None

    async def delete(self, endpoint_id: str, actor: str) -> None:
        """Take an endpoint away, with what waits for it."""
        await self._statements.rows(query("delete_endpoint"), endpoint_id, _details(actor, endpoint_id))

    async def enable(self, endpoint_id: str, actor: str) -> None:
        """Send a disabled endpoint messages again, from now on."""
        await self._statements.rows(query("enable_endpoint"), endpoint_id, _details(actor, endpoint_id))

    async def rotate(
        self, endpoint: Endpoint, signing_key_id: str, overlap_s: float, actor: str
    ) -> tuple[datetime | None] | None:
        """Give an endpoint its next secret. Returns the end of the old one; None when another call was faster."""
        rows = await self._statements.rows(
            query("rotate_endpoint"), endpoint.endpoint_id, endpoint.secret_version, signing_key_id, overlap_s,
            _details(actor, endpoint.endpoint_id),
        )  # fmt: skip
        return (rows[0]["old_secret_until"],) if rows else None

    async def deliveries(self, endpoint_id: str, before: int, limit: int) -> list[asyncpg.Record]:
        """Return an endpoint's deliveries with an id below `before`, newest first."""
        return await self._statements.rows(query("deliveries"), endpoint_id, before, limit)


def _details(actor: str, endpoint_id: str) -> str:
    return orjson.dumps({"actor": actor, "endpoint_id": endpoint_id}).decode()


def _endpoint(record: asyncpg.Record) -> Endpoint:
    return Endpoint(**{name: record[name] for name in Endpoint.__struct_fields__})
