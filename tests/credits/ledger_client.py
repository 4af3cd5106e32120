"""A client of the API that keeps everything of an answer, and the few calls that most tests begin with."""

from __future__ import annotations

import itertools
import secrets
from typing import Any, NamedTuple

import aiohttp
import orjson
from multidict import CIMultiDictProxy

from tests.server import ROOT_KEY

AUTHORIZED = {"Authorization": f"Bearer {ROOT_KEY}"}
_RUN = secrets.token_hex(3)
_numbers = itertools.count()


def fresh(prefix: str) -> str:
    """Return a name that no other test of this run uses."""
    return f"{prefix}-{_RUN}-{next(_numbers)}"


class Reply(NamedTuple):
    """One answer: status, header fields, exact bytes, and the bytes as JSON."""

    status: int
    headers: CIMultiDictProxy[str]
    raw: bytes
    body: Any

    @property
    def code(self) -> str:
        """The code of a refusal."""
        assert self.status >= 400, f"{self.status} is no refusal: {self.raw!r}"
        assert self.headers["Content-Type"] == "application/problem+json"
        assert self.body["status"] == self.status
        return str(self.body["code"])

    @property
    def refusal(self) -> tuple[int, str]:
        """Status and code of a refusal."""
        return self.status, self.code

    @property
    def replayed(self) -> bool:
        """Whether it says that it is the answer to an earlier request."""
        return self.headers.get("Idempotent-Replayed") == "true"


class Client:
    """Calls of one server."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        """`session` is open for as long as the client is used."""
        self.session = session
        self.url = url

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        data: bytes | None = None,
        **fields: str | None,
    ) -> Reply:
        """Send a request as the root. `fields` are header fields, `_` for `-`; None leaves one away."""
        headers: dict[str, str | None] = {**AUTHORIZED, "Idempotency-Key": key}
        if body is not None or data is not None:
            headers["Content-Type"] = "application/json"
        headers |= {name.replace("_", "-"): value for name, value in fields.items()}
        sent = {name: value for name, value in headers.items() if value is not None}
        content = orjson.dumps(body) if body is not None else data
        async with self.session.request(
            method, self.url + path, data=content, headers=sent, skip_auto_headers=["Content-Type"]
        ) as answer:
            # Of a stream that never ends, what comes first.
            raw = await (answer.content.readany() if answer.content_type == "text/event-stream" else answer.read())
            return Reply(
                answer.status, answer.headers, raw, orjson.loads(raw) if raw and "json" in answer.content_type else None
            )

    async def get(self, path: str) -> Reply:
        """GET as the root."""
        return await self.call("GET", path)

    async def post(self, path: str, body: Any = None, *, key: str | None = None, **fields: str | None) -> Reply:
        """POST as the root, with a new Idempotency-Key unless one is given."""
        return await self.call("POST", path, body, key=fresh("key") if key is None else key, **fields)

    async def done(self, path: str, body: Any = None) -> Any:
        """POST what must succeed and return the body."""
        reply = await self.post(path, body)
        assert reply.status in {200, 201}, reply.raw
        return reply.body

    async def tenant(self, credits_: int = 0, **settings: Any) -> str:
        """Open an account with some credits and return its tenant."""
        tenant = fresh("t")
        await self.done("/v1/accounts", {"tenant_id": tenant, **settings})
        if credits_:
            await self.topup(tenant, credits_)
        return tenant

    async def topup(self, tenant: str, amount: int) -> Any:
        """Add credits and return the transaction."""
        return await self.done("/v1/credits/topup", {"tenant_id": tenant, "amount": amount})

    async def consume(self, tenant: str, amount: int) -> Any:
        """Spend credits and return the transaction."""
        return await self.done("/v1/credits/consume", {"tenant_id": tenant, "amount": amount})

    async def reserve(self, tenant: str, amount: int, ttl_seconds: int = 300) -> Any:
        """Hold credits and return the reservation."""
        return await self.done("/v1/credits/reserve", {"tenant_id": tenant, "amount": amount, "ttl_seconds": ttl_seconds})

    async def account(self, tenant: str) -> Any:
        """Return an account."""
        return (await self.get(f"/v1/accounts/{tenant}")).body

    async def numbers(self, tenant: str) -> tuple[int, int, int]:
        """Return balance, reserved and version of an account."""
        account = await self.account(tenant)
        assert account["available"] == account["balance"] - account["reserved"]
        return account["balance"], account["reserved"], account["version"]
