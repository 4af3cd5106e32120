"""The whole ledger as the API sees it: finds the shard of an operation, its evidence, and its final outcome."""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING, Any, Final, TypeVar

import orjson

from app.actor import SECONDS_PER_UNIT, AskTimeout
from app.credits.account_reads import AccountReads
from app.credits.operation import Applied, Claims, Done, NeedsEvidence, Refused, Remembered, Reused, position_of
from app.credits.tally import Tally
from app.credits.transfers import Transfers
from app.turns import answer_from_task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from app.actor import Reply
    from app.audit.entry import Event
    from app.audit.shard import Shard
    from app.credits.ledger import Ledger
    from app.credits.operation import IdMask, Outcome
    from app.credits.records import Records
    from app.credits.request import Fingerprints

EVIDENCE_TRIES_MAX: Final = 3  # evidence goes stale only when Redis is replaced in between
ANSWER_WITHIN_S: Final = 1.9  # all steps of an answer together, whatever each may take: callers hear of an outage within 2 s
REFUNDABLE: Final = frozenset({"consume", "commit"})

Settled = Applied | Refused | Reused | Done
T = TypeVar("T")


def in_time(operations: int = 1) -> asyncio.Timeout:
    """Return the one time limit over all steps that an answer takes; beyond it they raise TimeoutError.

    Many operations get more, as in the mailbox. A step that was cut off may still be done: a retry with the same key finds
    it, and the sweeper ends what is left.
    """
    return asyncio.timeout(ANSWER_WITHIN_S + (operations - 1) * SECONDS_PER_UNIT)


class Book:
    """All shards of the ledger in this process."""

    def __init__(
        self,
        ledgers: Sequence[Ledger],
        shards: Sequence[Shard],
        records: Records,
        fingerprints: Fingerprints,
        mask: IdMask,
        account_reads: AccountReads,
    ) -> None:
        """`ledgers` and `shards` by shard number."""
        self.ledgers: Final = ledgers
        self.shards: Final = shards
        self.records: Final = records
        self.fingerprints: Final = fingerprints
        self.mask: Final = mask
        self.transfers: Final = Transfers(self)
        self.account_reads: Final = account_reads
        self.tally: Final = Tally(lambda: sum(ledger.expired for ledger in ledgers))

    def shard_of_tenant(self, tenant: str) -> int:
        """Return the shard of a tenant: fixed when the ledger was created, because their number is."""
        count = len(self.ledgers)
        return zlib.crc32(tenant.encode()) % count if count > 1 else 0

    def shard_of_id(self, identifier: str) -> int:
        """Return the shard that a transaction or reservation id names, or 0 when it names none of ours."""
        position = position_of(identifier, self.mask)
        return position[0] if position is not None and position[0] < len(self.ledgers) else 0

    def shard_of(self, fields: dict[str, Any]) -> int:
        """Return the shard that decides an operation."""
        if "tenant" in fields:
            return self.shard_of_tenant(fields["tenant"])
        if "legs" in fields:
            return self.shard_of_tenant(fields["legs"][0]["tenant_id"])
        return self.shard_of_id(fields["ref"])

    async def claim(self, fields: dict[str, Any]) -> tuple[Outcome, Awaitable[list[Outcome]]]:
        """Remember what a key stands for, in the shard that the key itself falls to.

        Returns what Redis says of it, and what is to be awaited before anybody is answered: until it is durable.
        Raises what `Ledger.submit` raises.
        """
        outcomes, durable = await self._claimed(self.shard_of_tenant(fields["key"]), [fields])
        return outcomes[0], durable

    async def _claimed(
        self, shard: int, fields: list[dict[str, Any]]
    ) -> tuple[list[Outcome], asyncio.Future[list[Outcome]]]:
        claims = Claims(fields)
        durable = self.ledgers[shard].submit_claims(claims)
        durable.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody may wait for it
        return await claims.decided, durable

    async def claim_keys(self, operations: Sequence[dict[str, Any]]) -> list[bool]:
        """Return for each operation whether its key stands for it and for no request to another shard.

        With one shard the operation's own record says so. With several, each key is claimed in a shard of its own;
        that claim is not kept in Postgres, because no money depends on it.
        """
        if len(self.ledgers) == 1:
            return [True] * len(operations)
        claims = [
            {"op": "claim", "key": self.fingerprints.key(f"claim {f['key']}"), "fp": f["fp"], "soft": True}
            for f in operations
        ]
        outcomes = await in_shards(claims, lambda claim: self.shard_of_tenant(claim["key"]), self._claim_in)
        return [isinstance(outcome, Done) for outcome in outcomes]

    async def _claim_in(self, shard: int, fields: list[dict[str, Any]]) -> list[Outcome]:
        """Return what Redis says of claims. Only who is refused waits until the claim that was first is durable."""
        outcomes, durable = await self._claimed(shard, fields)
        return outcomes if all(isinstance(outcome, Done) for outcome in outcomes) else await durable

    async def decide(self, fields: dict[str, Any]) -> Settled:
        """Return the durable outcome of one operation. Raises what `Ledger.submit` and `Records.rows` raise."""
        async with in_time():
            return (await self.decide_all([fields]))[0]

    def decide_soon(self, fields: dict[str, Any], reply: Reply[Settled]) -> None:
        """Give the durable outcome of one operation, or the error, to `reply`; it may be called before this returns.

        For the usual outcome of an operation of a single shard this takes no task and no turn of the event loop.
        Raises what `Ledger.submit` raises at once.
        """
        if len(self.ledgers) > 1 or fields["op"] == "refund":
            answer_from_task(self.decide(fields), reply)
            return

        def settle(outcomes: list[Outcome] | None, error: Exception | None) -> None:
            if outcomes is None:
                self.tally.lose((fields,))
                reply(None, error)
                return
            outcome = outcomes[0]
            if type(outcome) is Applied:  # the usual end; what is replayed comes back as Remembered
                self.tally.applied[fields["op"]] += 1
                reply(outcome, None)
            elif isinstance(outcome, Remembered | NeedsEvidence):
                answer_from_task(self._finish_one(fields, outcome), reply)
            else:
                self.tally.take(fields["op"], outcome)
                reply(outcome, None)

        try:
            self.ledgers[0].submit_one(fields, settle)
        except Exception:
            self.tally.lose((fields,))
            raise

    async def _finish_one(self, fields: dict[str, Any], outcome: Outcome) -> Settled:
        return (await self._counted((fields,), self._finish(0, (fields,), (outcome,))))[0]

    async def _counted(self, operations: Sequence[dict[str, Any]], work: Awaitable[list[Settled]]) -> list[Settled]:
        """Return what `work` makes of operations, counted; they count as unavailable when it raises."""
        try:
            outcomes = await work
        except BaseException:
            self.tally.lose(operations)
            raise
        self.tally.take_all(operations, outcomes)
        return outcomes

    async def decide_all(self, operations: Sequence[dict[str, Any]]) -> list[Settled]:
        """Return the durable outcomes of operations, each on its own, in order within each shard."""
        if len(operations) == 1 and "tenant" in operations[0] and len(self.ledgers) == 1:
            return await self._counted(operations, self._decide_in(0, list(operations)))
        return await self._counted(operations, self._decide_all(operations))

    async def _decide_all(self, operations: Sequence[dict[str, Any]]) -> list[Settled]:
        own = await self.claim_keys(operations)
        if not all(own):
            rest = iter(await self._decide_all([f for f, mine in zip(operations, own, strict=True) if mine]))
            return [next(rest) if mine else Reused() for mine in own]
        await asyncio.gather(*(self._add_refund_evidence(f) for f in operations if f["op"] == "refund"))
        return await in_shards(operations, self.shard_of, self._decide_in)

    async def record(self, kind: str, details: dict[str, Any]) -> None:
        """Append an entry that moves nothing to the first shard, and return once it is durable.

        kind     what happened, such as "key.created"; the dot tells it from the types that move credits
        details  integers, texts, booleans and objects of them; under the same `entry_id` it is recorded only once
        Raises what `Ledger.submit` raises.
        """
        if "." not in kind:
            raise ValueError(f"{kind!r} may be a type that moves credits")
        text = orjson.dumps(details, option=orjson.OPT_SORT_KEYS).decode()
        key = f"note {details['entry_id']}" if "entry_id" in details else None
        fields = self.fingerprints.stamp({"op": "note", "kind": kind, "details": text}, key, "")
        await self._decide_in(0, [fields])

    async def _decide_in(self, shard: int, operations: list[dict[str, Any]]) -> list[Settled]:
        return await self._finish(shard, operations, await self.ledgers[shard].submit(operations))

    async def _finish(self, shard: int, operations: Sequence[dict[str, Any]], outcomes: Sequence[Outcome]) -> list[Settled]:
        """Give evidence where Lua asked for it, and turn what was remembered into its events."""
        current = list(outcomes)
        for _ in range(EVIDENCE_TRIES_MAX):
            unknown = [i for i, outcome in enumerate(current) if isinstance(outcome, NeedsEvidence)]
            if not unknown:
                break
            again = [operations[i] for i in unknown]
            await asyncio.gather(*(self._add_evidence(shard, fields) for fields in again))
            for i, outcome in zip(unknown, await self.ledgers[shard].submit(again), strict=True):
                current[i] = outcome
        return await self._recall(shard, current)

    async def _recall(self, shard: int, outcomes: Sequence[Outcome]) -> list[Settled]:
        remembered = [o for o in outcomes if isinstance(o, Remembered)]
        events: dict[int, Event] = {}
        if remembered:
            seqs = [seq for o in remembered for seq in range(o.seq, o.seq + o.events)]
            events = await self.records.events_at(shard, seqs)
        final: list[Settled] = []
        for outcome in outcomes:
            match outcome:
                case NeedsEvidence():
                    raise AskTimeout("the evidence was never of the current generation")
                case Remembered(_, seq, count):
                    final.append(Applied(tuple(events[s] for s in range(seq, seq + count)), replayed=True))
                case Applied() | Refused() | Reused() | Done():
                    final.append(outcome)
        return final

    async def _add_evidence(self, shard: int, fields: dict[str, Any]) -> None:
        if fields["op"] == "refund":
            await self._add_refund_evidence(fields)
            return
        known = await self.records.reservation(fields["ref"])
        if known is None or (known.purpose == "spend") == (fields["op"] in {"settle", "cancel"}):
            fields["refuse"] = '["no_reservation"]'
        elif known.status != "held":
            fields["refuse"] = f'["reservation_{known.status}"]'
        else:
            # Postgres holds an open reservation that Redis, which knew it first, does not.
            self.ledgers[shard].doubt()

    async def _add_refund_evidence(self, fields: dict[str, Any]) -> None:
        """Add what Postgres knows of the transaction to refund: whose it is, how much, and what went back."""
        position = position_of(fields["ref"], self.mask)
        shard = self.shard_of_id(fields["ref"])
        fields["generation"] = self.shards[shard].generation
        found = await self.records.events(*position) if position is not None and position[0] == shard else []
        if not found or found[0].transaction_id != fields["ref"]:
            moved = await self.transfers.view(fields["ref"]) is not None  # over several shards, so it has no position
            fields["refuse"] = '["not_refundable"]' if moved else '["no_transaction"]'
        elif found[0].type not in REFUNDABLE:
            fields["refuse"] = '["not_refundable"]'
        else:
            fields["tenant"] = found[0].tenant_id
            fields["consumed"] = found[0].amount
            fields["refunded"] = await self.records.refunded(fields["ref"])


async def in_shards(
    operations: Sequence[dict[str, Any]],
    shard_of: Callable[[dict[str, Any]], int],
    decide: Callable[[int, list[dict[str, Any]]], Awaitable[list[T]]],
) -> list[T]:
    """Return what `decide` makes of operations, each in its shard, all shards at once; in the order of the operations."""
    by_shard: dict[int, list[int]] = {}
    for i, fields in enumerate(operations):
        by_shard.setdefault(shard_of(fields), []).append(i)
    groups = await asyncio.gather(*(decide(shard, [operations[i] for i in members]) for shard, members in by_shard.items()))
    outcomes: dict[int, T] = {}
    for members, group in zip(by_shard.values(), groups, strict=True):
        outcomes.update(zip(members, group, strict=True))
    return [outcomes[i] for i in range(len(operations))]
