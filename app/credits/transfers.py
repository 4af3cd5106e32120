"""Transactions over tenants of several shards: two-phase commit, decided in Postgres.

preparing   every leg is held in its shard: what a tenant gives as a hold without expiry, what it gets as incoming
committing  all legs are held and durable; from here on the transaction will be committed, whoever finishes it
aborting    a leg was refused, or the coordinator went silent; from here on the held legs are released
committed, aborted  no leg is held any more

The decision is one conditional UPDATE in Postgres; before it, nothing has moved. Every step can be repeated: a leg is
settled or released by the state of its reservation, once. The sweeper of any replica finishes what a dead one began.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple
from uuid import UUID

import asyncpg
import orjson
import redis.exceptions

from app.actor import ActorStopped, AskTimeout, InboxFull
from app.clock import ms_of, time_text
from app.credits.operation import Applied, Refused, Reused
from app.credits.records import raw16
from app.db.retry import TRANSIENT
from app.db.sql import query
from app.turns import end_task

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.audit.entry import Event
    from app.credits.book import Book

log = logging.getLogger(__name__)

STALLED_S: Final = 5.0  # a coordinator decides within 2 s or has told its caller 503; then others may abort
SWEEP_INTERVAL_S: Final = 1.0  # how often a replica looks for stalled transactions
SWEEP_MAX: Final = 100  # stalled transactions of one look

State = Literal["preparing", "committing", "aborting", "committed", "aborted"]


class Transfer(NamedTuple):
    """One row of credit_transfers."""

    transaction_id: str
    fingerprint: bytes
    state: State
    legs: list[dict[str, Any]]
    refusal: list[Any] | None
    created_at_ms: int


def _transfer(row: asyncpg.Record) -> Transfer:
    identifier, fingerprint, state, legs, refusal, created_at = row
    return Transfer(
        str(identifier), fingerprint, state, orjson.loads(legs), orjson.loads(refusal) if refusal else None,
        ms_of(created_at),
    )  # fmt: skip


class Transfers:
    """Coordinates transactions over several shards, and finishes those of others that stalled."""

    def __init__(self, book: Book) -> None:
        """`book` decides the steps in each shard."""
        self._book = book
        self._records = book.records
        self._task: asyncio.Task[None] | None = None

    def start(self, on_crash: Callable[[BaseException], None]) -> None:
        """Start to look for stalled transactions; a fault that is not an outage is a crash."""
        self._task = asyncio.create_task(self._sweep(on_crash), name="transfer sweeper")

    async def stop(self) -> None:
        """Stop looking; what is unfinished stays for another replica or the next start."""
        if self._task is not None:
            await end_task(self._task)

    async def run(
        self, identifier: str, legs: list[dict[str, Any]], stamp: dict[str, Any]
    ) -> tuple[Transfer, bool] | Reused:
        """Carry a transaction through and return it, committed or aborted, and whether it is a replay.

        `stamp` holds key, fp and rid. Raises what a shard raises when it is away: a retry with the same key goes on.
        """
        tally = self._book.tally
        try:
            result = await self._run(identifier, legs, stamp)
        except BaseException:
            tally.lose(({"op": "transfer"},))
            raise
        if isinstance(result, Reused):
            tally.take("transfer", result)
        else:
            transfer, replayed = result
            tally.take_word(
                "transfer", "replayed" if replayed else "applied" if transfer.state == "committed" else "refused"
            )
        return result

    async def _run(
        self, identifier: str, legs: list[dict[str, Any]], stamp: dict[str, Any]
    ) -> tuple[Transfer, bool] | Reused:
        if not all(await self._book.claim_keys([stamp])):
            return Reused()
        rows = await self._records.rows(
            query("begin_transfer"), UUID(identifier), raw16(stamp["key"]), raw16(stamp["fp"]), orjson.dumps(legs).decode()
        )
        transfer = _transfer(rows[0])
        if transfer.fingerprint != raw16(stamp["fp"]):
            return Reused()
        replayed = transfer.state in {"committed", "aborted"}
        if transfer.state == "preparing":
            transfer = await self._prepare(transfer, stamp["rid"])
        if transfer.state in {"committing", "aborting"}:
            transfer = await self._finish(transfer)
        return transfer, replayed

    async def _prepare(self, transfer: Transfer, request_id: str) -> Transfer:
        operations = []
        for i, leg in enumerate(transfer.legs):
            fields = {
                "op": "prepare_in" if leg["amount"] > 0 else "prepare_out",
                "tenant": leg["tenant_id"],
                "amount": abs(leg["amount"]),
                "ref": transfer.transaction_id,
            }
            operations.append(self._book.fingerprints.stamp(fields, f"transfer {transfer.transaction_id} {i}", request_id))
        outcomes = await self._book.decide_all(operations)
        refusals = [[o.code, *o.values[:1], i, request_id] for i, o in enumerate(outcomes) if isinstance(o, Refused)]
        return await self._decide(transfer, "aborting" if refusals else "committing", refusals[0] if refusals else None)

    async def _decide(self, transfer: Transfer, state: State, refusal: list[Any] | None) -> Transfer:
        """Move a transaction from preparing to `state`, unless somebody has decided already."""
        rows = await self._records.rows(
            query("decide_transfer"),
            UUID(transfer.transaction_id),
            state,
            orjson.dumps(refusal).decode() if refusal else None,
        )
        return _transfer(rows[0])

    async def _finish(self, transfer: Transfer) -> Transfer:
        """Settle or release every leg that is still held, then close the transaction."""
        verb = "settle" if transfer.state == "committing" else "cancel"
        rows = await self._records.rows(query("held_legs"), UUID(transfer.transaction_id))
        operations = [
            self._book.fingerprints.stamp(
                {"op": verb, "ref": str(row[0]), "purpose": row[1]}, f"{verb} {row[0]}", "transfer"
            )
            for row in rows
        ]
        for outcome in await self._book.decide_all(operations):
            if not isinstance(outcome, Applied) and not (
                isinstance(outcome, Refused) and outcome.code.startswith("reservation_")
            ):
                raise AssertionError(f"a held leg met {outcome}")
        done = await self._records.rows(query("close_transfer"), UUID(transfer.transaction_id))
        return _transfer(done[0])

    async def _sweep(self, on_crash: Callable[[BaseException], None]) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            try:
                for row in await self._records.rows(query("stalled_transfers"), STALLED_S, SWEEP_MAX):
                    transfer = _transfer(row)
                    log.warning("finishing a stalled transaction", extra={"transaction_id": transfer.transaction_id})
                    if transfer.state == "preparing":
                        transfer = await self._decide(transfer, "aborting", ["transaction_stalled", transfer.transaction_id])
                    if transfer.state in {"committing", "aborting", "committed", "aborted"}:
                        await self._finish(_reopened(transfer))
            except (
                InboxFull,
                ActorStopped,
                AskTimeout,
                redis.exceptions.RedisError,
                asyncpg.PostgresError,
                *TRANSIENT,
            ) as error:
                log.warning("stalled transactions wait", extra={"reason": type(error).__name__})
            except Exception as error:  # noqa: BLE001 - a contradiction between the stores: stop, do not limp on
                on_crash(error)
                return

    async def view(self, identifier: str) -> bytes | None:
        """Return the JSON of a transaction over several shards, or None."""
        rows = await self._records.rows(query("transfer"), UUID(identifier))
        return await self.body(_transfer(rows[0])) if rows else None

    async def settled(self, identifier: str) -> list[Event]:
        """Return the events that settled the legs of a transaction over shards, by leg; [] unless it is committed."""
        rows = await self._records.rows(query("transfer"), UUID(identifier))
        transfer = _transfer(rows[0]) if rows else None
        return await self._settled(transfer) if transfer is not None and transfer.state == "committed" else []

    async def body(self, transfer: Transfer) -> bytes:
        """Return the JSON of a transaction: each leg with its account right after it, and the place of the first one."""
        answer: dict[str, Any] = {
            "transaction_id": transfer.transaction_id,
            "type": "transfer",
            "status": transfer.state,
            "created_at": time_text(transfer.created_at_ms),
            "legs": transfer.legs,
        }
        if transfer.state == "committed":
            events = await self._settled(transfer)
            answer["legs"] = [
                leg | {"balance": e.balance, "shard": e.shard, "seq": e.seq}
                for leg, e in zip(transfer.legs, events, strict=True)
            ]
            seal = await self._records.seal(events[0].shard, events[0].seq)
            answer["audit"] = {
                "shard": events[0].shard, "seq": events[0].seq, "hash": seal.hash.hex(), "prev_hash": seal.prev_hash.hex(),
            }  # fmt: skip
        return orjson.dumps(answer)

    async def _settled(self, transfer: Transfer) -> list[Event]:
        """Return the event that settled each leg, in the order of the legs."""
        of_leg: dict[tuple[str, int], list[Event]] = {}
        for shard, seq in await self._records.rows(query("settled_legs"), UUID(transfer.transaction_id)):
            event = (await self._records.events(shard, seq))[0]
            signed = event.amount if event.type == "settle_in" else -event.amount
            of_leg.setdefault((event.tenant_id, signed), []).append(event)
        return [of_leg[leg["tenant_id"], leg["amount"]].pop(0) for leg in transfer.legs]


def _reopened(transfer: Transfer) -> Transfer:
    """Return a closed transaction as the decision that closed it: a leg prepared too late is still to be finished."""
    states: dict[State, State] = {"committed": "committing", "aborted": "aborting"}
    return transfer._replace(state=states.get(transfer.state, transfer.state))
