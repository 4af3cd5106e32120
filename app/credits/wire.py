"""Credits on the wire: the bodies that come in, the answers that go out, and how events become answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
import orjson
from msgspec import Meta, Struct

from app.access.bucket import BURST_MAX, RATE_MAX_PER_S
from app.clock import ms_of, now_ms, time_text
from app.credits.controls import quota_use
from app.credits.payment import PaymentBody
from app.web.fields import AMOUNT_MAX, Amount, Description, Input, Metadata, Name

if TYPE_CHECKING:
    from datetime import datetime

    from app.audit.entry import Event
    from app.credits.records import Account as AccountRow
    from app.credits.records import Reservation as ReservationRow

TTL_MAX_S: Final = 86_400  # a day; what is held longer is a purchase
TTL_DEFAULT_S: Final = 300
OPERATIONS_MAX: Final = 10_000  # of a batch: about a second of work
LEGS_MAX: Final = 100  # of a transaction: one script call of about 2 ms
BATCH_BODY_MAX_BYTES: Final = 16 * 1024 * 1024  # 10,000 operations of 1.6 KiB

Ttl = Annotated[int, Meta(ge=1, le=TTL_MAX_S, description="Seconds until the hold expires.")]
Version = Annotated[int, Meta(ge=0, le=AMOUNT_MAX, description="The version that the account must have.")]
ID_PATTERN: Final = r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z"
Id = Annotated[str, Meta(pattern=ID_PATTERN, description="UUIDv7, lower case.")]
Key = Annotated[str, Meta(pattern=r"^[\x21-\x7e][\x20-\x7e]{0,254}\Z", description="1 to 255 printable ASCII characters.")]
ReservationStatus = Literal["held", "committed", "aborted", "expired"]
TransactionType = Literal[
    "account", "update", "topup", "consume", "refund", "reserve", "commit", "abort", "expire", "transfer",
    "prepare_out", "prepare_in", "settle_out", "settle_in", "cancel_out", "cancel_in",
]  # fmt: skip


class Quota(Input, frozen=True):
    """How much a tenant may consume and reserve in each UTC hour, day or calendar month."""

    limit: Amount
    period: Literal["hour", "day", "month"]


class RateLimit(Input, frozen=True):
    """How many requests a second a tenant may make, and how many at once."""

    rate: Annotated[float, Meta(gt=0, le=RATE_MAX_PER_S)]
    burst: Annotated[int, Meta(ge=1, le=BURST_MAX)]


class NewAccount(Input, frozen=True):
    """Body of POST /v1/accounts."""

    tenant_id: Name
    low_balance_threshold: Annotated[int, Meta(ge=0, le=AMOUNT_MAX)] | None = None
    quota: Quota | None = None
    rate_limit: RateLimit | None = None
    metadata: Metadata | None = None


class AccountChange(Input, frozen=True):
    """Body of PATCH /v1/accounts/{tenant_id}: what is named changes, null takes it away, the rest stays."""

    low_balance_threshold: Annotated[int, Meta(ge=0, le=AMOUNT_MAX)] | msgspec.UnsetType | None = msgspec.UNSET
    quota: Quota | msgspec.UnsetType | None = msgspec.UNSET
    rate_limit: RateLimit | msgspec.UnsetType | None = msgspec.UNSET
    metadata: Metadata | msgspec.UnsetType | None = msgspec.UNSET


class TopUp(Input, frozen=True):
    """Body of POST /v1/credits/topup."""

    tenant_id: Name
    amount: Amount
    payment: PaymentBody | None = None
    description: Description | None = None
    metadata: Metadata | None = None
    expected_version: Version | None = None


class Consume(Input, frozen=True):
    """Body of POST /v1/credits/consume."""

    tenant_id: Name
    amount: Amount
    description: Description | None = None
    metadata: Metadata | None = None
    expected_version: Version | None = None


class Refund(Input, frozen=True):
    """Body of POST /v1/credits/refund: without an amount, all that is left of the transaction."""

    transaction_id: Id
    amount: Amount | None = None
    description: Description | None = None
    metadata: Metadata | None = None


class Reserve(Input, frozen=True):
    """Body of POST /v1/credits/reserve."""

    tenant_id: Name
    amount: Amount
    ttl_seconds: Ttl = TTL_DEFAULT_S
    description: Description | None = None
    metadata: Metadata | None = None
    expected_version: Version | None = None


class Commit(Input, frozen=True):
    """Body of POST /v1/credits/reservations/{id}/commit: without an amount, all that is held."""

    amount: Amount | None = None


class Abort(Input, frozen=True):
    """Body of POST /v1/credits/reservations/{id}/abort."""


class BatchConsume(Consume, tag="consume", tag_field="op", frozen=True):
    """A consume operation of a batch."""

    idempotency_key: Key | None = None


class BatchTopUp(TopUp, tag="topup", tag_field="op", frozen=True):
    """A top-up operation of a batch."""

    idempotency_key: Key | None = None


class BatchReserve(Reserve, tag="reserve", tag_field="op", frozen=True):
    """A reserve operation of a batch."""

    idempotency_key: Key | None = None


class BatchCommit(Commit, tag="commit", tag_field="op", frozen=True, kw_only=True):
    """A commit operation of a batch."""

    reservation_id: Id
    idempotency_key: Key | None = None


class BatchAbort(Abort, tag="abort", tag_field="op", frozen=True, kw_only=True):
    """An abort operation of a batch."""

    reservation_id: Id
    idempotency_key: Key | None = None


class BatchRefund(Refund, tag="refund", tag_field="op", frozen=True):
    """A refund operation of a batch."""

    idempotency_key: Key | None = None


BatchOperation = BatchConsume | BatchTopUp | BatchReserve | BatchCommit | BatchAbort | BatchRefund


class Batch(Input, frozen=True):
    """Body of POST /v1/credits/batch: each operation stands alone."""

    operations: Annotated[list[BatchOperation], Meta(min_length=1, max_length=OPERATIONS_MAX)]


class Leg(Input, frozen=True):
    """What one tenant gains (positive) or gives (negative)."""

    tenant_id: Name
    amount: Annotated[int, Meta(ge=-AMOUNT_MAX, le=AMOUNT_MAX, description="Not zero.")]


class Legs(Input, frozen=True):
    """Body of POST /v1/transactions: signed amounts that sum to zero, all or none."""

    legs: Annotated[list[Leg], Meta(min_length=2, max_length=LEGS_MAX)]


class Transaction(Struct, omit_defaults=True):
    """A movement of credits; balance, reserved, available and version as they were right after it."""

    transaction_id: Id
    type: TransactionType
    tenant_id: str
    amount: Annotated[int, Meta(description="Positive: the type tells the way. A transfer's is negative for who paid.")]
    balance: int
    reserved: int
    available: int
    version: int
    created_at: str
    shard: int
    seq: int
    reservation_id: str | None = None
    refunded_transaction_id: str | None = None
    description: str | None = None
    metadata: dict[str, Any] | None = None


class Reservation(Struct, omit_defaults=True):
    """A hold; balance, reserved, available and version where the call changed it."""

    reservation_id: Id
    tenant_id: str
    amount: int
    status: ReservationStatus
    created_at: str
    expires_at: str | None = None
    committed: int | None = None
    closed_at: str | None = None
    balance: int | None = None
    reserved: int | None = None
    available: int | None = None
    version: int | None = None
    description: str | None = None
    metadata: dict[str, Any] | None = None


class QuotaUse(Struct):
    """How much of the quota its current window has used; `resets_at` is the end of that window."""

    used: int
    remaining: int
    resets_at: str


class Account(Struct, omit_defaults=True):
    """A tenant's account; available = balance - reserved."""

    tenant_id: str
    balance: int
    reserved: int
    available: int
    version: int
    created_at: str
    updated_at: str
    low_balance_threshold: int | None = None
    quota: Quota | None = None
    quota_use: QuotaUse | None = None
    rate_limit: RateLimit | None = None
    metadata: dict[str, Any] | None = None


class BatchResults(Struct):
    """Each result has the operation's HTTP status and either its answer's fields or code and detail."""

    results: list[dict[str, Any]]
    succeeded: int
    failed: int


def available_tail(event: Event) -> str:
    """Return the JSON fields of what an account was right after an event."""
    e = event
    return (
        f'"balance":{e.balance},"reserved":{e.reserved},"available":{e.balance - e.reserved},"version":{e.version},'
        f'"created_at":"{time_text(e.at_ms)}","shard":{e.shard},"seq":{e.seq}'
    )


def _free_text(event: Event) -> str:
    text = ""
    if event.description is not None:
        text += f',"description":{orjson.dumps(event.description).decode()}'
    if event.metadata is not None:
        text += f',"metadata":{event.metadata}'
    return text


def leg_amount(event: Event) -> int:
    """Return the amount of a transfer's leg: negative for the tenant that paid."""
    return event.amount if event.debit.startswith("system:") else -event.amount


def transaction_fields(event: Event) -> str:
    """Return the JSON fields of a transaction, without the braces. Ids and names need no escaping."""
    e = event
    reference = ""
    if e.type == "refund":
        reference = f',"refunded_transaction_id":"{e.reference}"'
    elif e.type == "reserve":
        reference = f',"reservation_id":"{e.transaction_id}"'
    elif e.reference is not None:
        reference = f',"reservation_id":"{e.reference}"'
    amount = leg_amount(e) if e.type == "transfer" else e.amount
    return (
        f'"transaction_id":"{e.transaction_id}","type":"{e.type}","tenant_id":"{e.tenant_id}","amount":{amount},'
        f"{available_tail(e)}{reference}{_free_text(e)}"
    )


def reservation_fields(event: Event) -> str:
    """Return the JSON fields of a reservation but for its status, from the event that made or ended it."""
    e = event
    expires = ""
    identifier = e.reference
    if e.type == "reserve":
        identifier = e.transaction_id
        expires_at_ms = orjson.loads(e.details or "{}")["expires_at_ms"]
        expires = f',"expires_at":"{time_text(expires_at_ms)}"'
    return (
        f'"reservation_id":"{identifier}","transaction_id":"{e.transaction_id}","tenant_id":"{e.tenant_id}",'
        f'"amount":{e.amount}{expires},{available_tail(e)}{_free_text(e)}'
    )


def _time(at: datetime) -> str:
    return time_text(ms_of(at))


def account_body(row: AccountRow, at_ms: int | None = None) -> bytes:
    """Return the JSON of an account; its settings are JSON text. The quota's window is that of `at_ms`, or of now."""
    settings = "".join(f',"{name}":{text}' for name, text in sorted(row.settings.items()))
    if "quota" in row.settings:
        settings += f',"quota_use":{quota_use(row.settings, row.controls, now_ms() if at_ms is None else at_ms)}'
    return (
        f'{{"tenant_id":"{row.tenant_id}","balance":{row.balance},"reserved":{row.reserved},'
        f'"available":{row.balance - row.reserved},"version":{row.version},"created_at":"{_time(row.created_at)}",'
        f'"updated_at":"{_time(row.updated_at)}"{settings}}}'
    ).encode()


def reservation_body(row: ReservationRow) -> bytes:
    """Return the JSON of a reservation as Postgres knows it."""
    optional = ""
    if row.expires_at is not None:
        optional += f',"expires_at":"{_time(row.expires_at)}"'
    if row.closed_at is not None:
        optional += f',"closed_at":"{_time(row.closed_at)}"'
    if row.status == "committed":
        optional += f',"committed":{row.committed}'
    if row.description is not None:
        optional += f',"description":{orjson.dumps(row.description).decode()}'
    if row.metadata is not None:
        optional += f',"metadata":{row.metadata}'
    return (
        f'{{"reservation_id":"{row.reservation_id}","tenant_id":"{row.tenant_id}","amount":{row.amount},'
        f'"status":"{row.status}","created_at":"{_time(row.created_at)}"{optional}}}'
    ).encode()


def settings_of(body: NewAccount | AccountChange) -> dict[str, str | None]:
    """Return what a body sets on an account: JSON text by name, None for what it takes away."""
    named: dict[str, Any] = {
        "low_balance_threshold": body.low_balance_threshold,
        "quota": body.quota,
        "rate_limit": body.rate_limit,
        "metadata": body.metadata,
    }
    created = isinstance(body, NewAccount)
    return {
        name: None if value is None else msgspec.json.encode(value).decode()
        for name, value in named.items()
        if value is not msgspec.UNSET and not (created and value is None)
    }
