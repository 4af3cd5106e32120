"""Private records in Postgres: kept encrypted under a key of their subject, read on the record, destroyed for good.

A record belongs to one operation and has its id: the hash of the operation's idempotency key, which stands in the chain's
entry as well. So a retry finds what the first attempt kept, and a verifier finds the record of an entry.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import uuid
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg
import msgspec
import orjson

from app.clock import ms_of, time_of, time_text
from app.db.postgres import open_transaction
from app.db.retry import retry
from app.db.sql import query
from app.privacy.envelope import MasterKeyRefused, MasterKeys, Place, Sealed
from app.privacy.payment import CLASS, Payment, commitment, make_salt

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from app.db.pool import Pool
    from app.privacy.envelope import DataKey

log = logging.getLogger(__name__)

# Puts a fact about private data on the record, durably: kind and details. It raises when it cannot.
RecordFact = Callable[[str, dict[str, Any]], Awaitable[None]]

WAIT_S: Final = 0.7  # for a free connection
WORK_S: Final = 1.2  # of one transaction: a caller hears of an outage within 2 s
KEEP_TIMEOUT_S: Final = 2.0  # of all attempts to keep one record
KEY_FREE_MS: Final = 23 * 3_600_000  # an idempotency key is remembered for a day; an hour for clocks that differ
KEY_ATTEMPTS: Final = 3  # a subject may be erased between two statements, but not again and again
ERASURE: Final = "privacy.erasure"
RETENTION: Final = "privacy.retention"

_KEPT: Final = """
    SELECT tenant_id, subject, dek_id, commitment, sealed, shown::text, created_at, fingerprint
    FROM private_records WHERE record_id = $1
"""


class NoRecord(Exception):
    """There is no such private record: never kept, erased, or past its time."""


class OtherPayment(Exception):
    """The record of this idempotency key is that of another request: other payment data, another subject, another amount."""


class Kept(NamedTuple):
    """What an entry of the chain may say of a record: its commitment and the id of the key that it is under.

    made  whether this call made the record; otherwise it is that of an earlier request with the same key
    old   whether it was kept before the key could be used again: the entry of a request that is over may name it
    """

    record_id: str
    commitment: bytes
    dek_id: bytes
    shown: dict[str, Any]
    made: bool
    old: bool


class Disclosed(NamedTuple):
    """A record in the clear, with the salt that proves it against the commitment in the chain."""

    payment: Payment
    salt: bytes
    commitment: bytes

    def __repr__(self) -> str:
        """Show no secret."""
        return f"Disclosed({self.payment!r})"


class Erasure(NamedTuple):
    """A destruction that is done, and what its entry in the chain has to say."""

    erasure_id: str
    kind: str
    tombstone: str


class PrivateStore:
    """Private records and their keys, over a pool of the server's role."""

    def __init__(
        self,
        pool: Pool,
        masters: MasterKeys,
        record: RecordFact,
        clock_ms: Callable[[], int],
        load_keys: Callable[[], MasterKeys] | None = None,
    ) -> None:
        """`record` is awaited before private data leaves; `clock_ms` gives Unix milliseconds.

        load_keys  reads the master keys anew; without it they never change
        """
        self._pool = pool
        self._masters = masters
        self._record = record
        self._clock_ms = clock_ms
        self._load_keys = load_keys

    def reload(self) -> None:
        """Read the master keys anew; those that are known stay when that fails."""
        if self._load_keys is None:
            return
        try:
            masters = self._load_keys()
        except (MasterKeyRefused, OSError) as error:
            log.warning("master keys not read", extra={"reason": type(error).__name__})
            return
        if masters.ids != self._masters.ids:
            log.info("master keys changed", extra={"current": masters.current_id.hex()})
            self._masters = masters

    def _unwrap(self, row: asyncpg.Record, subject: str) -> DataKey:
        if row["kek_id"] not in self._masters.ids:
            self.reload()  # A rotation has just wrapped it under a key that is new.
        return self._masters.unwrap(row["kek_id"], row["wrapped"], subject, row["dek_id"])

    async def keep(
        self, record_id: str, tenant: str, subject: str, payment: Payment, fingerprint: str | None = None
    ) -> Kept:
        """Keep the payment data of an operation, before the operation itself; a second call keeps what the first did.

        record_id    hash of the operation's idempotency key
        fingerprint  keyed hash of the request: another request does not share the record while the key is remembered
        refuses      OtherPayment when the record holds something else, or is that of another request
        faults     asyncpg's errors when Postgres is away: then the operation must not be applied
        """
        async with asyncio.timeout(KEEP_TIMEOUT_S):
            return await retry(lambda: self._keep(record_id, tenant, subject, payment, fingerprint))

    async def _keep(self, record_id: str, tenant: str, subject: str, payment: Payment, fingerprint: str | None) -> Kept:
        for _ in range(KEY_ATTEMPTS):
            try:
                async with self._transaction() as connection:
                    row = await self._key(connection, subject)
                    if row is not None:
                        return await self._insert(connection, record_id, tenant, subject, payment, fingerprint, row)
            except asyncpg.ForeignKeyViolationError:
                pass  # The subject was erased meanwhile: under another key it is another subject.
        raise NoRecord(f"the subject of record {record_id} is being erased again and again")

    async def _insert(
        self,
        connection: asyncpg.Connection[Any],
        record_id: str,
        tenant: str,
        subject: str,
        payment: Payment,
        fingerprint: str | None,
        row: asyncpg.Record,
    ) -> Kept:
        key = self._unwrap(row, subject)
        content, salt, now_ms = payment.canonical(), make_salt(), self._clock_ms()
        sealed = [
            key.encrypt(value, Place(tenant, subject, record_id, field), self._masters.current_id)
            for field, value in (("salt", salt), ("values", content))
        ]
        made = await connection.fetchval(
            query("keep_private_record"), record_id, CLASS, tenant, subject, key.key_id, commitment(salt, CLASS, content),
            orjson.dumps(payment.shown()).decode(), *sealed, time_of(now_ms), fingerprint,
        )  # fmt: skip
        kept = await connection.fetchrow(_KEPT, record_id)
        if kept is None:
            raise NoRecord(f"private record {record_id} was destroyed as it was kept")
        old = now_ms - ms_of(kept["created_at"]) > KEY_FREE_MS
        if made is None:
            if not old and kept["fingerprint"] not in {None, fingerprint}:
                raise OtherPayment
            if (kept["tenant_id"], kept["subject"], kept["dek_id"]) != (tenant, subject, key.key_id):
                raise OtherPayment
            if not hmac.compare_digest(key.decrypt(kept["sealed"], Place(tenant, subject, record_id, "values")), content):
                raise OtherPayment
        return Kept(record_id, kept["commitment"], kept["dek_id"], orjson.loads(kept["shown"]), made is not None, old)

    async def _key(self, connection: asyncpg.Connection[Any], subject: str) -> asyncpg.Record | None:
        """Return the row of a subject's key, made if there is none; None when it was destroyed in the same moment."""
        sql = "SELECT dek_id, kek_id, wrapped FROM private_keys WHERE subject = $1"
        row: asyncpg.Record | None = await connection.fetchrow(sql, subject)
        if row is None:
            key, wrapped = self._masters.make_data_key(subject)
            await connection.execute(
                query("keep_private_key"), subject, key.key_id, self._masters.current_id, wrapped, time_of(self._clock_ms())
            )
            row = await connection.fetchrow(sql, subject)
        return row

    async def forget(self, record_id: str) -> None:
        """Destroy the record of an operation that was refused, and the key if it was the only one under it.

        Nothing in the chain speaks of it.
        """
        async with self._transaction() as connection:
            gone = await connection.fetchrow(
                "DELETE FROM private_records WHERE record_id = $1 RETURNING subject, dek_id", record_id
            )
        if gone is not None:
            with contextlib.suppress(asyncpg.ForeignKeyViolationError):  # meanwhile another record is under the key
                async with self._transaction() as connection:
                    await connection.execute(query("forget_private_key"), *gone)

    async def shown(self, record_id: str, commitment: bytes | None = None) -> dict[str, Any]:
        """Return the masked form of a record. Raises NoRecord, also when another record has had its id since.

        commitment  32 bytes, as the entry of the record names it; None for whichever record there is
        """
        sql = "SELECT shown::text FROM private_records WHERE record_id = $1 AND commitment = coalesce($2, commitment)"
        async with self._transaction() as connection:
            text = await connection.fetchval(sql, record_id, commitment)
        if text is None:
            raise NoRecord(f"no private record {record_id}")
        shown: dict[str, Any] = orjson.loads(text)
        return shown

    async def read(self, record_id: str, *, actor: str, purpose: str) -> Disclosed:
        """Return a record in the clear. Who reads it and why is on the record before anything is opened.

        actor    id of the API key that asks; purpose: a few words, without personal data
        faults   NoRecord; Sealed when it was tampered with; what `record` raises
        """
        async with self._transaction() as connection:
            row = await connection.fetchrow(query("private_record"), record_id)
        details = {"actor": actor, "found": row is not None, "purpose": purpose, "record": record_id}
        await self._record("privacy.read", details)
        if row is None:
            raise NoRecord(f"no private record {record_id}")
        key = self._unwrap(row, row["subject"])
        place = Place(row["tenant_id"], row["subject"], record_id, "values")
        content, salt = key.decrypt(row["sealed"], place), key.decrypt(row["salt"], place._replace(field="salt"))
        if not hmac.compare_digest(commitment(salt, row["class"], content), row["commitment"]):
            raise Sealed
        return Disclosed(msgspec.json.decode(content, type=Payment), salt, row["commitment"])

    async def erase(self, subject: str, *, request_id: str, basis: str) -> Erasure | None:
        """Destroy a subject's key and private records in one transaction; None when there is nothing of it.

        basis    ground of the request, e.g. "gdpr-17"
        returns  what the chain has to get; it stays among `open_erasures` until `entered` is called
        """
        async with self._transaction() as connection:
            # The key is locked first: whoever keeps a record meanwhile waits, and then finds no key.
            dek_id = await connection.fetchval("SELECT dek_id FROM private_keys WHERE subject = $1 FOR UPDATE", subject)
            if dek_id is None:
                return None
            counts = {
                row["class"]: row["records"] for row in await connection.fetch(query("erase_private_records"), subject)
            }
            await connection.execute("DELETE FROM private_keys WHERE subject = $1", subject)
            details = {"basis": basis, "keys": [dek_id.hex()], "records": counts, "request_id": request_id}
            return await note_erasure(connection, ERASURE, details, self._clock_ms())

    async def open_erasures(self, limit: int = 100) -> list[Erasure]:
        """Return destructions whose tombstone is not known to be in the chain, oldest first."""
        async with self._transaction() as connection:
            rows = await connection.fetch(
                "SELECT erasure_id::text, kind, tombstone FROM private_erasures WHERE entered_at IS NULL "
                "ORDER BY erased_at LIMIT $1", limit,
            )  # fmt: skip
        return [Erasure(*row) for row in rows]

    async def entered(self, erasure_id: str) -> None:
        """Note that the chain holds the tombstone; the erasure id is the idempotency key under which it was entered."""
        async with self._transaction() as connection:
            await connection.execute(
                "UPDATE private_erasures SET entered_at = $2 WHERE erasure_id = $1::text::uuid AND entered_at IS NULL",
                erasure_id, time_of(self._clock_ms()),
            )  # fmt: skip

    async def expire(self, limits_s: Mapping[str, int], batch: int = 1_000) -> list[Erasure]:
        """Destroy what has been kept for longer than its class allows, in batches; return the tombstones.

        limits_s  class to seconds; a class that is not named is kept
        """
        now_ms = self._clock_ms()
        erasures = []
        for name, limit_s in sorted(limits_s.items()):
            before_ms = now_ms - limit_s * 1000
            details = {"before": time_text(before_ms), "class": name}
            while True:
                async with self._transaction() as connection:
                    count = await connection.fetchval(query("expire_private_records"), name, time_of(before_ms), batch)
                    if count:
                        erasures.append(await note_erasure(connection, RETENTION, details | {"records": count}, now_ms))
                if count < batch:
                    break
        longest_ms = now_ms - max(limits_s.values(), default=0) * 1000
        while limits_s:
            async with self._transaction() as connection:
                if await connection.fetchval(query("expire_private_keys"), time_of(longest_ms), batch) < batch:
                    break
        return erasures

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[asyncpg.Connection[Any]]:
        async with open_transaction(self._pool, WAIT_S, WORK_S) as connection:
            yield connection


async def note_erasure(connection: asyncpg.Connection[Any], kind: str, details: dict[str, Any], now_ms: int) -> Erasure:
    """Write down a destruction in the transaction that does it. The details name no person."""
    erasure_id = str(uuid.uuid4())
    tombstone = orjson.dumps(details | {"entry_id": erasure_id}, option=orjson.OPT_SORT_KEYS).decode()
    await connection.execute(query("note_erasure"), erasure_id, kind, tombstone, time_of(now_ms))
    return Erasure(erasure_id, kind, tombstone)
