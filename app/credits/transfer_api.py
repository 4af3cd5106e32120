"""POST /v1/transactions: all legs in one script where one shard holds them, by two-phase commit where several do."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Final

from app.clock import now_ms
from app.credits.api import book_of, refused_answer
from app.credits.book import in_time
from app.credits.operation import Applied, Refused, Reused
from app.credits.permits import no_account, sees, take_each, tell
from app.credits.reads import transfer_fields
from app.credits.wire import Legs
from app.web.body import Body
from app.web.problems import invalid
from app.web.routes import Handled, idempotency_key, json_answer

if TYPE_CHECKING:
    from app.credits.book import Book
    from app.web.request import Request

LEGS: Final = Body(Legs)


def _coordinator_id() -> str:
    """Return a UUIDv7 (RFC 9562) with a shard that no ledger has, so that it is never taken for an event's."""
    tail = secrets.token_hex(8)
    at_ms = now_ms()
    return f"{at_ms >> 16:08x}-{at_ms & 0xFFFF:04x}-7fff-{0x8000 | int(tail[:4], 16) & 0x3FFF:04x}-{tail[4:]}"


async def _over_shards(book: Book, legs: list[dict[str, Any]], stamp: dict[str, Any], request_id: str) -> Handled:
    async with in_time():
        result = await book.transfers.run(_coordinator_id(), legs, stamp)
        if isinstance(result, Reused):
            return refused_answer(result, request_id)
        transfer, replayed = result
        if transfer.state == "committed":
            return json_answer(await book.transfers.body(transfer), replayed=replayed)
    code, *values = transfer.refusal or ["transaction_stalled"]
    first_request_id = str(values.pop()) if values else request_id
    # Whoever did not decide it meets a replay, even if both began at once.
    replayed = replayed or first_request_id != request_id
    return refused_answer(Refused(code, tuple(values), first_request_id, replayed), request_id)


async def transfer(request: Request) -> Handled:
    """Move credits between tenants: the legs sum to zero, all are applied or none."""
    body = await LEGS.read(request)
    if any(leg.amount == 0 for leg in body.legs):
        raise invalid(f"/legs/{[leg.amount for leg in body.legs].index(0)}/amount", "Expected an amount that is not 0")
    if sum(leg.amount for leg in body.legs) != 0:
        raise invalid("/legs", "Expected amounts that sum to 0")
    book, request_id = book_of(request), request.request_id
    for i, leg in enumerate(body.legs):
        if not sees(request, leg.tenant_id):
            raise no_account(leg=i)
    made = await take_each(request, [leg.tenant_id for leg in body.legs])
    legs = [{"tenant_id": leg.tenant_id, "amount": leg.amount} for leg in body.legs]
    stamp = book.fingerprints.stamp({"op": "transfer", "legs": legs}, idempotency_key(request), request_id)
    if len({book.shard_of_tenant(leg.tenant_id) for leg in body.legs}) > 1:
        return tell(await _over_shards(book, legs, stamp, request_id), made)
    outcome = await book.decide(stamp)
    if isinstance(outcome, Applied):
        return tell(json_answer(f"{{{transfer_fields(outcome.events)}}}".encode(), replayed=outcome.replayed), made)
    return tell(refused_answer(outcome, request_id), made)
