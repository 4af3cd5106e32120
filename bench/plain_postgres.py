"""The peer: a ledger in Postgres alone, written as well as one can, behind the same HTTP server.

Every consume is one statement in one implicit transaction, prepared once per connection: one round trip.
The statement debits the account under its row lock, links the entry to the account's hash chain, and the
unique index over the idempotency keys turns a repeat into a replay. The commit waits for the disk
(`synchronous_commit = on`). The chain is kept per account, not per ledger: one chain for all would make
every request wait for the fsync of the one before, which is the hot account's fate for everybody.

It does less than shieldx: no reservations, no quotas, no outbox, no remembered refusals, no signatures.
What it leaves out can only make it faster.
"""

import argparse
import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import asyncpg
import msgspec
import uvloop
from aiohttp import web

from bench.ceiling import serve

if TYPE_CHECKING:
    from asyncpg.prepared_stmt import PreparedStatement

SQL: Final = Path(__file__).parent / "sql"
AMOUNT_MAX: Final = 10**14 - 1  # the limit of the HTTP contract that both sides serve
CONNECTIONS_DEFAULT: Final = 32  # open transactions; "Peers" in bench/README.md says how to choose again
KEY_CHARS_MAX: Final = 255  # characters of an Idempotency-Key, as the contract says
UUID_VERSION_7: Final = 0x7 << 76
UUID_VARIANT: Final = 0x2 << 62


def query_text(name: str) -> str:
    """Read the statement `name` of bench/sql."""
    return (SQL / f"{name}.sql").read_text()


class ConsumeBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/credits/consume."""

    tenant_id: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$")]
    amount: Annotated[int, msgspec.Meta(gt=0, le=AMOUNT_MAX)]


class Transaction(msgspec.Struct, frozen=True):
    """Answer of the same shape as shieldx gives."""

    transaction_id: str
    tenant_id: str
    amount: int
    balance: int
    reserved: int
    available: int
    version: int
    created_at: str
    shard: int
    seq: int
    type: str = "consume"


class Problem(msgspec.Struct, frozen=True):
    """Error in the form of RFC 9457."""

    status: int
    code: str
    title: str


def uuid7() -> uuid.UUID:
    """Time-ordered identifier: 48 bits of Unix milliseconds, 74 random bits (RFC 9562 section 5.7)."""
    random = int.from_bytes(os.urandom(10), "big")
    time_part = (time_ns() // 1_000_000 << 80) | UUID_VERSION_7
    return uuid.UUID(int=time_part | (random >> 68 << 64) | UUID_VARIANT | (random % (1 << 62)))


class Session(NamedTuple):
    """One connection with its statement prepared."""

    connection: "asyncpg.Connection[asyncpg.Record]"
    consume: "PreparedStatement[asyncpg.Record]"


class Postgres:
    """A fixed set of sessions; a request borrows one.

    asyncpg's own pool resets a connection with one more round trip per request; nothing here needs that.
    """

    def __init__(self, sessions: list[Session]) -> None:
        """Own `sessions`."""
        self._sessions = sessions
        self._free: asyncio.LifoQueue[Session] = asyncio.LifoQueue()
        self._replay = query_text("replay")
        for session in sessions:
            self._free.put_nowait(session)

    @classmethod
    async def open(cls, database_url: str, size: int) -> "Postgres":
        """Connect `size` times and prepare.

        faults  OSError or asyncpg.PostgresError when the database refuses
        """
        consume = query_text("consume")
        settings = {"synchronous_commit": "on", "plan_cache_mode": "force_generic_plan"}
        connections = [await asyncpg.connect(database_url, server_settings=settings) for _ in range(size)]
        return cls([Session(connection, await connection.prepare(consume)) for connection in connections])

    async def close(self) -> None:
        """Close all connections."""
        for session in self._sessions:
            await session.connection.close()

    async def consume(self, body: ConsumeBody, key: str) -> Transaction | Problem:
        """Debit once per key.

        returns  the transaction, the first one again for a repeat, or why it was refused
        faults   asyncpg.PostgresError when the database fails
        """
        transaction_id, now = uuid7(), datetime.now(UTC)
        session = await self._free.get()
        try:
            row = await session.consume.fetchrow(body.tenant_id, body.amount, transaction_id, now, key)
            if row is None:
                return await self._refusal(session, body.tenant_id)
        except asyncpg.UniqueViolationError:
            return await self._replayed(session, body, key)
        finally:
            self._free.put_nowait(session)
        return _transaction(body, row["balance"], row["version"], transaction_id, now)

    async def _replayed(self, session: Session, body: ConsumeBody, key: str) -> Transaction | Problem:
        row = await session.connection.fetchrow(self._replay, key)
        if row is None or (row["tenant_id"], row["amount"]) != (body.tenant_id, body.amount):
            return Problem(422, "idempotency_key_reused", "The key was used for another request.")
        return _transaction(body, row["balance"], row["version"], row["transaction_id"], row["created_at"])

    async def _refusal(self, session: Session, tenant_id: str) -> Problem:
        query = "SELECT 1 FROM accounts WHERE tenant_id = $1"
        if await session.connection.fetchval(query, tenant_id) is None:
            return Problem(404, "no_account", "There is no such account.")
        return Problem(402, "insufficient_credits", "The account holds too little.")


def _transaction(body: ConsumeBody, balance: int, version: int, transaction_id: uuid.UUID, at: datetime) -> Transaction:
    return Transaction(
        transaction_id=str(transaction_id),
        tenant_id=body.tenant_id,
        amount=body.amount,
        balance=balance,
        reserved=0,
        available=balance,
        version=version,
        created_at=at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        shard=0,
        seq=version - 1,
    )


POSTGRES: Final = web.AppKey("POSTGRES", Postgres)
DECODER: Final = msgspec.json.Decoder(ConsumeBody)
ENCODER: Final = msgspec.json.Encoder()


async def consume(request: web.Request) -> web.Response:
    """POST /v1/credits/consume: 200 with the transaction, or a problem."""
    key = request.headers.get("Idempotency-Key", "")
    if not 1 <= len(key) <= KEY_CHARS_MAX:
        return _answer(Problem(400, "idempotency_key_missing", "An Idempotency-Key is required."))
    try:
        body = DECODER.decode(await request.read())
    except msgspec.ValidationError:
        return _answer(Problem(422, "invalid_request", "The body does not have the required shape."))
    except msgspec.DecodeError:
        return _answer(Problem(400, "malformed_json", "The body is not JSON."))
    return _answer(await request.app[POSTGRES].consume(body, key))


def _answer(outcome: Transaction | Problem) -> web.Response:
    if isinstance(outcome, Problem):
        body = ENCODER.encode(outcome)
        return web.Response(status=outcome.status, body=body, content_type="application/problem+json")
    return web.Response(body=ENCODER.encode(outcome), content_type="application/json")


async def ready(request: web.Request) -> web.Response:  # noqa: ARG001
    """GET /ready: the routes are served only after the database answered, so it is always 200."""
    return web.Response(body=b'{"state":"ready"}', content_type="application/json")


def make_app(database_url: str, connections: int) -> web.Application:
    """Build the application; it opens `connections` sessions when it starts."""

    async def postgres(app: web.Application) -> AsyncIterator[None]:
        app[POSTGRES] = await Postgres.open(database_url, connections)
        yield
        await app[POSTGRES].close()

    app = web.Application()
    app.cleanup_ctx.append(postgres)
    app.add_routes([web.post("/v1/credits/consume", consume), web.get("/ready", ready)])
    return app


async def seed(database_url: str, tenants: int, balance: int) -> None:
    """Create the tables if they are missing, and give every tenant its balance.

    faults  OSError or asyncpg.PostgresError when the database refuses
    """
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(query_text("schema"))
        await connection.execute(query_text("seed"), tenants, balance)
        await connection.execute("VACUUM ANALYZE accounts")
    finally:
        await connection.close()


def main() -> None:
    """Seed and serve as the command line says; the database comes from DATABASE_URL."""
    parser = argparse.ArgumentParser(prog="python -m bench.plain_postgres", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, default=CONNECTIONS_DEFAULT)
    parser.add_argument("--tenants", type=int, required=True)
    parser.add_argument("--balance", type=int, required=True)
    arguments = parser.parse_args()
    database_url = os.environ["DATABASE_URL"]

    async def run() -> None:
        await seed(database_url, arguments.tenants, arguments.balance)
        await serve(make_app(database_url, arguments.connections), arguments.host, arguments.port)

    uvloop.run(run())


if __name__ == "__main__":
    main()
