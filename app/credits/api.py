"""Credits over HTTP: decode, ask the book, answer. The refusals' statuses stand in one table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import asyncpg
import msgspec
import orjson
import redis.exceptions
from aiohttp import web

from app.actor import ActorStopped, AskTimeout, InboxFull
from app.clock import time_of
from app.credits.opening import Credits
from app.credits.operation import Applied, Refused, Reused
from app.credits.payment import decide_with_payment
from app.credits.permits import drawn, is_free, sees_operation, take, tell
from app.credits.quotas import DETAIL, quota_problem
from app.credits.records import Account
from app.credits.request import close_fields, refund_fields, reserve_fields, spend_fields, topup_fields
from app.credits.wire import (
    Abort,
    AccountChange,
    Commit,
    Consume,
    NewAccount,
    Refund,
    Reserve,
    TopUp,
    account_body,
    reservation_fields,
    settings_of,
    transaction_fields,
)
from app.db.retry import TRANSIENT
from app.privacy.opening import Privacy
from app.turns import answer_from_task
from app.web.body import Body
from app.web.problems import Problem, problem_body
from app.web.routes import Handled, idempotency_key, if_match, json_answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.credits.book import Book, Settled
    from app.privacy.store import PrivateStore
    from app.web.edge import Done
    from app.web.request import Request

B = TypeVar("B", bound=msgspec.Struct)

CREDITS: Final = web.AppKey("credits", Credits)
PRIVACY: Final = web.AppKey("privacy", Privacy)
RETRY_AFTER_S: Final = 1

# Refusals of the ledger: status, and what a caller can do about it.
REFUSALS: Final[dict[str, tuple[int, str]]] = {
    "quota_exceeded": (429, DETAIL),
    "insufficient_credits": (402, "The available balance is below the amount; top up, or ask for less."),
    "no_account": (404, "There is no account of this tenant; create it with POST /v1/accounts."),
    "no_reservation": (404, "There is no reservation with this id."),
    "no_transaction": (404, "There is no transaction with this id."),
    "account_exists": (409, "The tenant has an account already."),
    "version_conflict": (409, "The account has changed since; read it again and decide anew."),
    "reservation_committed": (409, "The reservation has been committed."),
    "reservation_aborted": (409, "The reservation has been aborted."),
    "reservation_expired": (409, "The reservation has expired; reserve again."),
    "balance_limit_exceeded": (409, "The balance would exceed 99,999,999,999,999 credits."),
    "transaction_stalled": (409, "The transaction was given up before it was complete; nothing moved. Use a new key."),
    "already_refunded": (409, "All of the transaction has been refunded."),
    "not_refundable": (409, "Only what was consumed or committed can be refunded."),
    "amount_exceeds_reservation": (422, "The amount is above what the reservation holds."),
    "refund_exceeds_consumed": (422, "The amount is above what is left to refund of the transaction."),
}
# What each refusal says besides its code, in the order in which Lua gives it.
_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "insufficient_credits": ("available", "leg"),
    "version_conflict": ("version",),
    "amount_exceeds_reservation": ("held",),
    "refund_exceeds_consumed": ("refundable",),
    "no_account": ("leg",),
    "balance_limit_exceeded": ("leg",),
}


def unavailable(reason: str) -> Problem:
    """Return the 503 for a store that is out of reach or a ledger that is full."""
    return Problem(
        503, "unavailable", f"{reason} Repeat the request with the same Idempotency-Key.",
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )  # fmt: skip


def book_of(request: Request) -> Book:
    """Return the ledger, or refuse with 503 while this process has not reached Postgres yet."""
    book = request.app[CREDITS].book
    if book is None:
        raise unavailable("The server is starting.")
    return book


def store_of(request: Request) -> PrivateStore:
    """Return the store of private data, or refuse with 503 while this process has not reached Postgres yet."""
    store = request.app[PRIVACY].store
    if store is None:
        raise unavailable("The server is starting.")
    return store


def outage(error: Exception) -> Problem | None:
    """Return the 503 of an exception that means: nothing was applied, or a retry with the same key tells what was."""
    match error:
        case ValueError() | asyncpg.DataError():
            return None
        case InboxFull():
            return unavailable("The ledger has more work than it takes.")
        case ActorStopped():
            return unavailable("The server is stopping.")
        case AskTimeout() | redis.exceptions.RedisError() | asyncpg.PostgresError():
            return unavailable("A store is out of reach.")
    return unavailable("A store is out of reach.") if isinstance(error, TRANSIENT) else None


def refusal(outcome: Refused | Reused) -> Problem:
    """Return the problem of a refusal."""
    if isinstance(outcome, Reused):
        return Problem(422, "idempotency_key_reused", "The Idempotency-Key was used for another request.")
    if outcome.code == "quota_exceeded":
        return quota_problem(outcome.values)
    status, detail = REFUSALS[outcome.code]
    extra = dict(zip(_NAMES.get(outcome.code, ()), outcome.values, strict=False))
    headers = {"Idempotent-Replayed": "true"} if outcome.replayed else None
    return Problem(status, outcome.code, detail, headers=headers, **extra)


def transaction_answer(outcome: Settled, request_id: str) -> Handled:
    """Return the answer of a call that moves credits of one account."""
    if isinstance(outcome, Applied):
        event = outcome.events[0]
        body = f"{{{transaction_fields(event)}}}".encode()
        return json_answer(body, etag=event.version, replayed=outcome.replayed)
    return refused_answer(outcome, request_id)


def refused_answer(outcome: Settled, request_id: str) -> Handled:
    """Return the answer of a refusal; a replayed one is the first answer to the letter, its request id included."""
    if not isinstance(outcome, Refused | Reused):
        raise AssertionError(f"{type(outcome).__name__} is not a refusal")
    problem = refusal(outcome)
    if isinstance(outcome, Refused) and outcome.replayed and outcome.request_id != request_id:
        return json_answer(problem_body(problem, outcome.request_id), status=problem.status, replayed=True)
    return problem


def held_answer(outcome: Settled, request_id: str) -> Handled:
    """Return the answer of a call that makes a reservation."""
    return _reservation_answer(outcome, "held", request_id)


def aborted_answer(outcome: Settled, request_id: str) -> Handled:
    """Return the answer of a call that aborts a reservation."""
    return _reservation_answer(outcome, "aborted", request_id)


def _reservation_answer(outcome: Settled, status: str, request_id: str) -> Handled:
    if isinstance(outcome, Applied):
        event = outcome.events[0]
        body = f'{{{reservation_fields(event)},"status":"{status}"}}'.encode()
        return json_answer(body, etag=event.version, replayed=outcome.replayed)
    return refused_answer(outcome, request_id)


def _sure(answer: Handled | None) -> Handled:
    if answer is None:
        raise AssertionError("neither an answer nor an error")
    return answer


class MoneyCall(Generic[B]):
    """A call that is one operation of the ledger: from body and headers to its fields, from its outcome to an answer."""

    def __init__(
        self,
        body: Body[B],
        fields: Callable[[B, Request], dict[str, Any]],
        answer: Callable[[Settled, str], Handled],
    ) -> None:
        """`fields` says what is asked, without key; `answer` takes the outcome and the request's id."""
        self._body = body
        self._fields = fields
        self._answer = answer

    async def __call__(self, request: Request) -> Handled:
        """Answer a request whose body may still be on its way."""
        body = await self._body.read(request)
        book, fields = self._ask(request, body)
        return await self._permitted(request, book, fields, body)

    def begin(self, request: Request, done: Done) -> None:
        """Answer a request that is whole, as soon as its operation is durable and without a task (`app.web.edge.Prompt`)."""
        body = self._body.take(request)
        book, fields = self._ask(request, body)
        if "payment" in fields or not is_free(request, fields.get("tenant")):
            answer_from_task(
                self._permitted(request, book, fields, body), lambda answer, error: done(error or _sure(answer))
            )
            return

        def reply(outcome: Settled | None, error: Exception | None) -> None:
            if outcome is None:
                done(error or AssertionError("neither an outcome nor an error"))
                return
            try:
                answer = self._answer(outcome, request.request_id)
            except Exception as fault:  # noqa: BLE001 - a fault of ours is an answer too, and must not stop the ledger
                done(fault)
            else:
                done(answer)

        book.decide_soon(fields, reply)

    async def _permitted(self, request: Request, book: Book, fields: dict[str, Any], body: B) -> Handled:
        refused = await sees_operation(request, book, fields)
        if refused is not None:
            return refused
        made = await take(request, drawn(request, fields["op"], fields.get("tenant")))
        if isinstance(body, TopUp) and body.payment is not None:
            outcome = await decide_with_payment(store_of(request), book, fields, body.payment)
        else:
            outcome = await book.decide(fields)
        return tell(self._answer(outcome, request.request_id), made)

    def _ask(self, request: Request, body: B) -> tuple[Book, dict[str, Any]]:
        fields = self._fields(body, request)
        book = book_of(request)
        return book, book.fingerprints.stamp(fields, idempotency_key(request), request.request_id)


CONSUME: Final = Body(Consume)
TOPUP: Final = Body(TopUp)
REFUND: Final = Body(Refund)
RESERVE: Final = Body(Reserve)
COMMIT: Final = Body(Commit, optional=True)
ABORT: Final = Body(Abort, optional=True)
NEW_ACCOUNT: Final = Body(NewAccount)
ACCOUNT_CHANGE: Final = Body(AccountChange)


consume: Final = MoneyCall(
    CONSUME, lambda body, request: spend_fields("consume", body, if_match(request)), transaction_answer
)
topup: Final = MoneyCall(TOPUP, lambda body, request: topup_fields(body, if_match(request)), transaction_answer)
refund: Final = MoneyCall(REFUND, lambda body, request: refund_fields(body, if_match(request)), transaction_answer)
reserve: Final = MoneyCall(RESERVE, lambda body, request: reserve_fields(body, if_match(request)), held_answer)
commit: Final = MoneyCall(
    COMMIT,
    lambda body, request: close_fields("commit", request.match_info["reservation_id"], body.amount, if_match(request)),
    transaction_answer,
)
abort: Final = MoneyCall(
    ABORT,
    lambda _, request: close_fields("abort", request.match_info["reservation_id"], None, if_match(request)),
    aborted_answer,
)


def _changed_account(outcome: Settled, status: int, request_id: str) -> Handled:
    """Answer with the account as the call left it, all of it from the event, so that a replay is the same."""
    if not isinstance(outcome, Applied):
        return refused_answer(outcome, request_id)
    event = outcome.events[0]
    details = orjson.loads(event.details or "{}")
    row = Account(
        event.tenant_id, event.balance, event.reserved, event.version,
        time_of(details["created_at_ms"]), time_of(event.at_ms), details["settings"],
        details.get("controls", {}),
    )  # fmt: skip
    return json_answer(account_body(row, event.at_ms), status=status, etag=event.version, replayed=outcome.replayed)


async def create_account(request: Request) -> Handled:
    """POST /v1/accounts; an Idempotency-Key is welcome but not needed, since a second account is refused anyway."""
    body = await NEW_ACCOUNT.read(request)
    key = idempotency_key(request) if "idempotency-key" in request.headers else None
    fields = {"op": "account", "tenant": body.tenant_id, "settings": settings_of(body)}
    return await _change(request, fields, key, 201)


async def change_account(request: Request) -> Handled:
    """PATCH /v1/accounts/{tenant_id}."""
    body = await ACCOUNT_CHANGE.read(request)
    fields: dict[str, Any] = {"op": "update", "tenant": request.match_info["tenant_id"], "settings": settings_of(body)}
    expected = if_match(request)
    if expected is not None:
        fields["expect"] = expected
    key = idempotency_key(request) if "idempotency-key" in request.headers else None
    return await _change(request, fields, key, 200)


async def _change(request: Request, fields: dict[str, Any], key: str | None, status: int) -> Handled:
    book = book_of(request)
    book.fingerprints.stamp(fields, key, request.request_id)
    refused = await sees_operation(request, book, fields)
    if refused is not None:
        return refused
    made = await take(request, drawn(request, fields["op"], fields["tenant"]))
    return tell(_changed_account(await book.decide(fields), status, request.request_id), made)
