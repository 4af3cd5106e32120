"""Reads of credits over HTTP. All come from Postgres, so they show what is durable and nothing else."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

import orjson
from msgspec import Struct

from app.access.api import key_of
from app.access.scope import tenant_filter
from app.clock import ms_of, time_text
from app.credits.account_reads import AccountAsk
from app.credits.api import book_of, store_of
from app.credits.operation import position_of
from app.credits.permits import drawn, is_free, no_account, no_reservation, no_transaction, sees, take, tell
from app.credits.wire import (
    ID_PATTERN,
    Account,
    Id,
    Reservation,
    ReservationStatus,
    Transaction,
    TransactionType,
    account_body,
    leg_amount,
    reservation_body,
    transaction_fields,
)
from app.privacy.store import NoRecord
from app.turns import answer_from_task
from app.web.fields import check_name
from app.web.problems import invalid
from app.web.routes import Handled, cursor, json_answer, limit, query, time

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from app.audit.entry import Event
    from app.credits.book import Book
    from app.credits.records import Account as AccountRow
    from app.web.edge import Done
    from app.web.request import Request

SEQ_END: Final = 1 << 60  # above every seq
ID_END: Final = "ffffffff-ffff-ffff-ffff-ffffffffffff"  # not below any id
USAGE_BUCKETS_MAX: Final = 1_000  # hours or days of one answer: 41 days by the hour


class AccountPage(Struct):
    """A page of accounts."""

    data: list[Account]
    next_cursor: str | None


class TransactionPage(Struct):
    """A page of transactions."""

    data: list[Transaction]
    next_cursor: str | None


class ReservationPage(Struct):
    """A page of reservations."""

    data: list[Reservation]
    next_cursor: str | None


class BalanceAt(Struct):
    """What an account was at a time: right after its last event not later than that."""

    tenant_id: str
    at: str
    balance: int
    reserved: int
    available: int
    version: int


class UsageBucket(Struct):
    """One hour or day of a tenant's usage; `transactions` counts them all."""

    start: str
    consumed: int
    topped_up: int
    refunded: int
    transactions: int


class UsagePage(Struct):
    """Usage by hour or day, only buckets with any."""

    data: list[UsageBucket]
    next_cursor: str | None


class AuditPosition(Struct):
    """Where an event stands in its chain; hashes in hex."""

    shard: int
    seq: int
    hash: str
    prev_hash: str


class TransferLeg(Struct, omit_defaults=True):
    """One leg of a transaction over several tenants."""

    tenant_id: str
    amount: int
    balance: int | None = None
    seq: int | None = None
    shard: int | None = None


class Transfer(Struct, omit_defaults=True):
    """A transaction over several tenants; balances and positions once it is committed."""

    transaction_id: Id
    status: str
    created_at: str
    legs: list[TransferLeg]
    type: str | None = None
    audit: AuditPosition | None = None


class PaymentShown(Struct, omit_defaults=True):
    """What may be shown of the payment of a top-up; `erased` when it was destroyed, on request or at the end of its time."""

    card_number: str | None = None
    cardholder_name: str | None = None
    expiry: str | None = None
    erased: bool = False


class TransactionView(Struct, omit_defaults=True):
    """A transaction and its position in the chain."""

    transaction_id: Id
    type: str
    status: str
    created_at: str
    audit: AuditPosition | None = None
    tenant_id: str | None = None
    amount: int | None = None
    balance: int | None = None
    reserved: int | None = None
    available: int | None = None
    version: int | None = None
    shard: int | None = None
    seq: int | None = None
    reservation_id: str | None = None
    refunded_transaction_id: str | None = None
    description: str | None = None
    metadata: dict[str, Any] | None = None
    legs: list[TransferLeg] | None = None
    payment: PaymentShown | None = None


class TrialBalance(Struct):
    """Balances of the system accounts and of all tenants; together they are zero."""

    accounts: dict[str, int]
    tenants: int
    total: int


_is_id: Final = re.compile(ID_PATTERN).match


def encode_cursor(value: object) -> str:
    """Return an opaque cursor that holds a value."""
    return base64.urlsafe_b64encode(orjson.dumps(value)).rstrip(b"=").decode()


def decode_cursor(text: str | None, kind: type[Any], default: Any, shape: Callable[[str], object] = check_name) -> Any:
    """Return the value of a cursor of ours, a seq or a text of this shape; 422 for anything else."""
    if text is None:
        return default
    try:
        value = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except ValueError:
        value = None
    if type(value) is not kind or (kind is int and not 0 <= value <= SEQ_END) or (kind is str and not shape(value)):
        raise invalid("?cursor", "Expected the next_cursor of the page before")
    return value


def page(items: Sequence[bytes], next_cursor: str | None) -> Handled:
    """Return a page of JSON texts."""
    following = "null" if next_cursor is None else f'"{next_cursor}"'
    return json_answer(b'{"data":[' + b",".join(items) + b'],"next_cursor":' + following.encode() + b"}")


async def _account(request: Request) -> AccountRow:
    """Return the account that the path names; the answer to a call that a rate limit let in."""
    tenant = request.match_info["tenant_id"]
    if not sees(request, tenant):
        raise no_account()
    row: AccountRow | None = await book_of(request).account_reads.ask(AccountAsk(tenant))
    if row is None:
        raise no_account()
    return row


class AccountRead:
    """GET /v1/accounts/{tenant_id}."""

    async def __call__(self, request: Request) -> Handled:
        """Answer from a task, as every other read does."""
        made = await take(request, drawn(request, "read", request.match_info["tenant_id"]))
        return tell(_account_answer(await _account(request)), made)

    def begin(self, request: Request, done: Done) -> None:
        """Answer without a task (`app.web.edge.Prompt`), unless there is something to check."""
        if not is_free(request, request.match_info["tenant_id"]):
            answer_from_task(self(request), lambda answer, error: done(error or answer or no_account()))
            return

        def reply(row: AccountRow | None, error: Exception | None) -> None:
            done(error or (no_account() if row is None else _account_answer(row)))

        book_of(request).account_reads.post(AccountAsk(request.match_info["tenant_id"]), reply)


def _account_answer(row: AccountRow) -> Handled:
    return json_answer(account_body(row), etag=row.version)


account: Final = AccountRead()


async def accounts(request: Request) -> Handled:
    """GET /v1/accounts."""
    count = limit(request)
    after, seen = decode_cursor(cursor(request), str, ""), tenant_filter(key_of(request))
    rows = await book_of(request).records.accounts(after, count + 1, seen)
    following = encode_cursor(rows[count - 1].tenant_id) if len(rows) > count else None
    return page([account_body(row) for row in rows[:count]], following)


async def transactions(request: Request) -> Handled:
    """GET /v1/accounts/{tenant_id}/transactions."""
    count = limit(request)
    before = decode_cursor(cursor(request), int, SEQ_END)
    kind, since, until = query(request, "type", TransactionType, None), time(request, "from"), time(request, "to")
    await _account(request)
    tenant = request.match_info["tenant_id"]
    events = await book_of(request).records.history(tenant, kind, since, until, before, count + 1)
    following = encode_cursor(events[count - 1].seq) if len(events) > count else None
    return page([f"{{{transaction_fields(event)}}}".encode() for event in events[:count]], following)


async def balance(request: Request) -> Handled:
    """GET /v1/accounts/{tenant_id}/balance; now, unless a time is given."""
    at = time(request, "at") or datetime.now(UTC)
    await _account(request)
    tenant = request.match_info["tenant_id"]
    event = await book_of(request).records.event_before(tenant, at)
    numbers = (event.balance, event.reserved, event.version) if event is not None else (0, 0, 0)
    answer = BalanceAt(tenant, time_text(ms_of(at)), numbers[0], numbers[1], numbers[0] - numbers[1], numbers[2])
    return json_answer(orjson.dumps({name: getattr(answer, name) for name in BalanceAt.__struct_fields__}))


async def reservations(request: Request) -> Handled:
    """GET /v1/accounts/{tenant_id}/reservations."""
    count = limit(request)
    before = decode_cursor(cursor(request), str, ID_END, _is_id)
    status = query(request, "status", ReservationStatus, None)
    await _account(request)
    rows = await book_of(request).records.reservations(request.match_info["tenant_id"], status, before, count + 1)
    following = encode_cursor(rows[count - 1].reservation_id) if len(rows) > count else None
    return page([reservation_body(row) for row in rows[:count]], following)


async def reservation(request: Request) -> Handled:
    """GET /v1/credits/reservations/{reservation_id}."""
    row = await book_of(request).records.reservation(request.match_info["reservation_id"])
    if row is None or row.purpose != "spend" or not sees(request, row.tenant_id):
        raise no_reservation()
    return json_answer(reservation_body(row))


async def usage(request: Request) -> Handled:
    """GET /v1/accounts/{tenant_id}/usage; the last 24 hours by the hour, unless asked otherwise."""
    granularity = query(request, "granularity", Literal["hour", "day"], "hour")
    until = time(request, "to") or datetime.now(UTC)
    try:
        since = time(request, "from") or until - timedelta(days=1 if granularity == "hour" else 30)
    except OverflowError:
        raise invalid("?to", "Expected a later time") from None
    width = timedelta(hours=1) if granularity == "hour" else timedelta(days=1)
    if since >= until or (until - since) / width > USAGE_BUCKETS_MAX:
        raise invalid("?from", f"Expected a time before `to` and at most {USAGE_BUCKETS_MAX} buckets earlier")
    await _account(request)
    rows = await book_of(request).records.usage(request.match_info["tenant_id"], since, until, granularity)
    buckets: dict[datetime, dict[str, Any]] = {}
    for start, kind, amount, number in rows:
        bucket = buckets.setdefault(
            start, {"start": time_text(ms_of(start)), "consumed": 0, "topped_up": 0, "refunded": 0, "transactions": 0}
        )
        name = {"topup": "topped_up", "refund": "refunded"}.get(kind, "consumed")
        bucket[name] += amount
        bucket["transactions"] += number
    return page([orjson.dumps(bucket) for bucket in buckets.values()], None)


def transfer_fields(events: Sequence[Event]) -> str:
    """Return the JSON fields of a transaction over several tenants, from the events of its legs."""
    legs = ",".join(
        f'{{"tenant_id":"{e.tenant_id}","amount":{leg_amount(e)},"balance":{e.balance},"shard":{e.shard},"seq":{e.seq}}}'
        for e in events
    )
    first = events[0]
    return (
        f'"transaction_id":"{first.transaction_id}","status":"committed",'
        f'"created_at":"{time_text(first.at_ms)}","legs":[{legs}]'
    )


async def entries_of(book: Book, identifier: str) -> list[Event]:
    """Return the events of a transaction of one shard, of a transfer one for each leg; [] when there is no such one."""
    position = position_of(identifier, book.mask)
    if position is None or position[0] >= len(book.ledgers):
        return []
    events = await book.records.events(*position)
    if not events or events[0].transaction_id != identifier:
        return []
    if events[0].type != "transfer":
        return events
    return await book.records.events(*position, orjson.loads(events[0].details or "{}")["legs"])


async def _transfer_view(request: Request, book: Book, identifier: str) -> bytes:
    """Return a transaction over shards; one leg that the key may not see hides it."""
    answer = await book.transfers.view(identifier)
    if answer is None or not all(sees(request, leg["tenant_id"]) for leg in orjson.loads(answer)["legs"]):
        raise no_transaction()
    return answer


async def transaction(request: Request) -> Handled:
    """GET /v1/transactions/{transaction_id}."""
    book = book_of(request)
    identifier = request.match_info["transaction_id"]
    events = await entries_of(book, identifier)
    if not events or not events[0].tenant_id:
        return json_answer(await _transfer_view(request, book, identifier))
    if not all(sees(request, event.tenant_id) for event in events):
        raise no_transaction()
    event = events[0]
    seal = await book.records.seal(event.shard, event.seq)
    audit = (
        f'"audit":{{"shard":{event.shard},"seq":{event.seq},"hash":"{seal.hash.hex()}",'
        f'"prev_hash":"{seal.prev_hash.hex()}"}}'
    )
    if event.type == "transfer":
        fields = f'"type":"transfer",{transfer_fields(events)}'
    else:
        fields = f'{transaction_fields(event)},"status":"committed"{await _payment_field(request, event)}'
    return json_answer(f"{{{fields},{audit}}}".encode())


async def _payment_field(request: Request, event: Event) -> str:
    named = orjson.loads(event.details or "{}").get("payment") if event.type == "topup" else None
    if named is None or event.idempotency is None:
        return ""
    try:
        shown = await store_of(request).shown(event.idempotency, bytes.fromhex(named))
    except NoRecord:
        shown = {"erased": True}
    return f',"payment":{orjson.dumps(shown).decode()}'


async def trial_balance(request: Request) -> Handled:
    """GET /v1/ledger/trial-balance."""
    balances = await book_of(request).records.trial_balance()
    tenants = balances.pop("tenants")
    total = tenants + sum(balances.values())
    return json_answer(orjson.dumps({"accounts": balances, "tenants": tenants, "total": total}))
