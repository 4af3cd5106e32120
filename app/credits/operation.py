"""A money operation on its way: what Lua is told, what Lua answers, and the event that follows from both. Pure.

An operation's `fields` are what `lua/ledger_apply.lua` reads, as one JSON object:

op       account, update, topup, consume, refund, reserve, commit, abort, transfer, prepare_out, prepare_in,
         settle, cancel, sweep, claim, note
tenant   the tenant, where the caller names it          amount   credits, 1 to 10^14 - 1
key, fp  hashes of idempotency key and request, 22 characters of base64url each; rid, the request's id
expect   the version the account must have              ref      reservation, or the transaction to refund
ttl_ms   how long a hold may stand                      purpose  transfer_out or transfer_in (settle, cancel)
desc, meta  text                                        legs     [{tenant_id, amount}], signed amounts
settings    what people set on an account, each as JSON text, null to take it away
consumed, refunded, generation  what Postgres knows of the transaction to refund, and as of which generation
kind, details  what a note says: the type of its event, and canonical JSON text
soft     a claim that need not survive Redis
refuse   the refusal that Postgres has already established, as Lua would write it
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import orjson

from app.actor import Ask
from app.audit.entry import ENTRY_PREFIX, Event, Record
from app.clock import ms_of
from app.credits.controls import with_controls

if TYPE_CHECKING:
    from collections.abc import Sequence

AMOUNT_MAX: Final = 10**14 - 1  # Lua prints no number with more digits exactly
LOW_BITS: Final = 48  # of a transaction id hold the seq, so 2.8 * 10^14 events fit a shard


class Applied(NamedTuple):
    """The operation was applied, now or at its first try; one event, or one for each leg."""

    events: tuple[Event, ...]
    replayed: bool = False


class Refused(NamedTuple):
    """The ledger said no, now or at the first try. `values` are what Lua added to the code."""

    code: str
    values: tuple[Any, ...]
    request_id: str
    replayed: bool = False


class Remembered(NamedTuple):
    """Applied earlier, as the events seq .. seq + count - 1 of this shard; they are durable by now."""

    shard: int
    seq: int
    events: int


class Reused(NamedTuple):
    """The idempotency key was used by another request."""


class NeedsEvidence(NamedTuple):
    """Redis does not know what the operation refers to, or the evidence is of an older generation."""


class Done(NamedTuple):
    """A step without an event: a sweep (of so many holds) or a claim."""

    holds: int


Outcome = Applied | Refused | Remembered | Reused | NeedsEvidence | Done


class Order(Ask[list[Outcome]]):
    """Operations of one shard that one caller waits for. Each of them stands alone."""

    __slots__ = ("fields", "generation", "outcomes", "raws", "weight")

    def __init__(self, fields: list[dict[str, Any]]) -> None:
        """`fields`: one dictionary an operation, as in the module's text."""
        super().__init__()
        self.fields = fields
        self.raws = [orjson.dumps(fields[0])] if len(fields) == 1 else [orjson.dumps(one) for one in fields]
        self.outcomes: list[Outcome] = []
        self.weight = len(fields)
        self.generation = 0  # of the Redis that decided the first operation

    def tell(self) -> None:
        """Give the outcomes to whoever waits for them."""
        self.answer(self.outcomes)


class Claims(Order):
    """Claims, which move nothing: what they are for goes on once Redis has decided them, and only its answer waits.

    decided  gets the outcomes before they are durable, or the error
    """

    __slots__ = ("decided",)

    def __init__(self, fields: list[dict[str, Any]]) -> None:
        """`fields` as of an order."""
        super().__init__(fields)
        self.decided: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()

    def foretell(self) -> None:
        """Give the outcomes to whoever goes on with them; what is decided again after an outage changes nothing there."""
        if not self.decided.done():
            self.decided.set_result(list(self.outcomes))

    def fail(self, error: Exception) -> None:
        """Give `error` in place of both answers that are still due."""
        super().fail(error)
        if not self.decided.done():
            self.decided.set_exception(error)
            self.decided.exception()  # whoever had asked may have gone


class IdMask(NamedTuple):
    """What a ledger adds to the generation and seq inside its transaction ids, so that two ledgers never share one."""

    high: int
    low: int

    @classmethod
    def of(cls, ledger_id: bytes) -> IdMask:
        """Return the mask of a ledger from its 16-byte id."""
        return cls(int.from_bytes(ledger_id[:2], "big") & 0x3FFF, int.from_bytes(ledger_id[-6:], "big"))


@lru_cache(maxsize=256)
def _id_head(at_ms: int, shard: int, generation: int, mask: IdMask) -> str:
    """Return what the ids of all events of one script call begin with."""
    high = 0x8000 + (generation + mask.high) % 0x4000
    return f"{at_ms >> 16:08x}-{at_ms & 0xFFFF:04x}-7{shard:03x}-{high:04x}-"


def transaction_id(at_ms: int, shard: int, generation: int, seq: int, mask: IdMask) -> str:
    """Return the UUIDv7 (RFC 9562) of an event: its time, its shard in rand_a, generation and seq in rand_b.

    Unique because a shard gives a seq once in a generation; invertible, so a transaction is found by primary key.
    """
    return f"{_id_head(at_ms, shard, generation, mask)}{(seq + mask.low) % (1 << LOW_BITS):012x}"


def position_of(identifier: str, mask: IdMask) -> tuple[int, int] | None:
    """Return (shard, seq) of a transaction id, or None when the text cannot be one."""
    if len(identifier) != 36 or identifier[14:15] != "7" or identifier[19:20] not in "89ab":
        return None
    parts = identifier.split("-")
    if [len(part) for part in parts] != [8, 4, 4, 4, 12]:
        return None
    try:
        numbers = [int(part, 16) for part in parts]
    except ValueError:
        return None
    if identifier != identifier.lower() or "_" in identifier or "+" in identifier:
        return None
    return numbers[2] & 0xFFF, (numbers[4] - mask.low) % (1 << LOW_BITS)


# Which account each kind of event debits and credits; {} stands for the tenant.
_SIDES: Final[dict[str, tuple[str, str]]] = {
    "account": ("tenant:", "tenant:"),
    "update": ("tenant:", "tenant:"),
    "topup": ("system:funding", "tenant:"),
    "consume": ("tenant:", "system:revenue"),
    "refund": ("system:revenue", "tenant:"),
    "reserve": ("tenant:", "held:"),
    "commit": ("held:", "system:revenue"),
    "abort": ("held:", "tenant:"),
    "expire": ("held:", "tenant:"),
    "transfer": ("tenant:", "system:clearing"),
    "prepare_out": ("tenant:", "held:"),
    "prepare_in": ("tenant:", "tenant:"),
    "settle_out": ("held:", "system:clearing"),
    "settle_in": ("system:clearing", "tenant:"),
    "cancel_out": ("held:", "tenant:"),
    "cancel_in": ("tenant:", "tenant:"),
}


# What a note states, which moves nothing.
_NO_SIDES: Final = ("system:none", "system:none")


def _side(name: str, tenant: str) -> str:
    return name + tenant if name[-1] == ":" else name


def _kind(fields: dict[str, Any]) -> str:
    kind: str = fields["op"]
    if kind == "note":
        noted: str = fields["kind"]
        return noted
    return f"{kind}{fields['purpose'][8:]}" if kind in {"settle", "cancel"} else kind


def _details(kind: str, fields: dict[str, Any], extra: Any) -> str | None:
    """Return the canonical JSON of what only this kind of event has to say."""
    match kind:
        case "reserve":
            return f'{{"expires_at_ms":{extra}}}'
        case "commit":
            return f'{{"released":{extra}}}'
        case "refund":
            return f'{{"consumed":{fields["consumed"]},"refunded":{extra}}}'
        case "transfer":
            return f'{{"leg":{extra[0]},"legs":{extra[1]}}}'
        case "account" | "update":
            settings = orjson.dumps(extra[1], option=orjson.OPT_SORT_KEYS).decode()
            return f'{{"created_at_ms":{extra[0]},"settings":{settings}}}'
    return fields.get("details")


def event_of(shard: int, generation: int, mask: IdMask, fields: dict[str, Any], result: list[Any]) -> Event:
    """Return the event of an applied operation, from what was asked and what Lua answered (["ok", seq, ...])."""
    _, seq, at_ms, balance, reserved, version, tenant, amount, extra, *controls = result
    kind = _kind(fields)
    debit, credit = _SIDES.get(kind, _NO_SIDES)
    first_seq = seq
    if kind == "transfer":
        first_seq = seq - extra[0] + 1
        if extra[2] > 0:
            debit, credit = credit, debit
    details = _details(kind, fields, extra)
    if controls:
        details = with_controls(details, controls[0])
    return Event(
        shard, generation, seq, at_ms, kind, tenant, _side(debit, tenant), _side(credit, tenant),
        amount, balance, reserved, version, transaction_id(at_ms, shard, generation, first_seq, mask),
        fields.get("key"), fields.get("fp"), fields.get("ref"), fields.get("desc"), fields.get("meta"),
        details,
    )  # fmt: skip


def events_of_item(shard: int, generation: int, mask: IdMask, op: bytes, result: bytes) -> Event:
    """Return the event of one pair of an outbox item, as any replica's script wrote it."""
    return event_of(shard, generation, mask, orjson.loads(op), orjson.loads(result))


def outcome_of(
    shard: int, generation: int, mask: IdMask, fields: dict[str, Any], answer: bytes
) -> tuple[Outcome, Sequence[Event]]:
    """Return what Lua's answer to an operation means, and the events it made besides the outcome's own."""
    result = orjson.loads(answer)
    code = result[0]
    if code == "ok":
        event = event_of(shard, generation, mask, fields, result)
        return Applied((event,)), (event,)
    if code == "many":
        events = tuple(event_of(shard, generation, mask, fields, part) for part in result[1:])
        return Applied(events), events
    return _other_outcome(shard, code, result), ()


def first_answer(answer: bytes) -> bytes:
    """Return the answer that is remembered under a key: what Lua says now, or what it says it said then."""
    result = orjson.loads(answer)
    return orjson.dumps(result[1]) if result[0] == "replay" else answer


def _other_outcome(shard: int, code: str, result: list[Any]) -> Outcome:
    match code:
        case "replay":
            first = result[1]
            if first[0] == "ok":
                return Remembered(shard, first[1], first[2] if len(first) > 2 else 1)
            if first[0] == "claimed":
                return Done(0)
            return Refused(first[0], tuple(first[1:-1]), first[-1], replayed=True)
        case "reused":
            return Reused()
        case "unknown":
            return NeedsEvidence()
        case "swept" | "claimed":
            return Done(result[1] if len(result) > 1 else 0)
    return Refused(code, tuple(result[1:-1]), result[-1])


def event_of_entry(entry: bytes) -> Event:
    """Return the event that an entry of the chain was made from."""
    r = _record(entry[len(ENTRY_PREFIX) :])
    details = None if r.details is None else orjson.dumps(r.details, option=orjson.OPT_SORT_KEYS).decode()
    return Event(
        r.shard, r.generation, r.seq, ms_of(datetime.fromisoformat(r.at)), r.type, r.tenant_id, r.debit, r.credit,
        r.amount, r.balance, r.reserved, r.version, r.transaction_id, r.idempotency, r.fingerprint, r.reference,
        r.description, r.metadata, details,
    )  # fmt: skip


_record: Final = msgspec.json.Decoder(Record).decode
