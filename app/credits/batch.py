"""POST /v1/credits/batch: many operations in one request, each on its own, results in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from app.credits.api import book_of, refusal, refused_answer, store_of
from app.credits.batch_body import BatchBody
from app.credits.book import in_time
from app.credits.operation import Applied, Refused, Reused
from app.credits.payment import keep_payment, payment_of, settle_payment
from app.credits.permits import drawn, hidden_operations, take_each, tell
from app.credits.request import batch_fields
from app.credits.wire import BatchTopUp, reservation_fields, transaction_fields
from app.privacy.store import OtherPayment
from app.web.problems import Problem, invalid
from app.web.routes import Handled, idempotency_key, json_answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.credits.book import Settled
    from app.credits.payment import PaymentBody
    from app.credits.wire import BatchOperation
    from app.privacy.store import Kept
    from app.web.request import Request

BATCH: Final = BatchBody()
PAYMENTS_MAX: Final = 100  # operations of a batch with a payment: each is kept in a transaction of its own, some 3 ms


def _result(op: str, outcome: Settled | Problem) -> str:
    """Return the JSON of one result: its HTTP status, then the answer's fields, or code and detail."""
    if isinstance(outcome, Applied):
        event = outcome.events[0]
        if op in {"reserve", "abort"}:
            status = "held" if op == "reserve" else "aborted"
            return f'{{"status":200,"reservation_status":"{status}",{reservation_fields(event)}}}'
        return f'{{"status":200,{transaction_fields(event)}}}'
    if isinstance(outcome, Refused | Reused):
        problem = refusal(outcome)
    elif isinstance(outcome, Problem):
        problem = outcome
    else:
        raise AssertionError(f"{op} has the outcome {type(outcome).__name__}")
    return orjson.dumps({"status": problem.status, "code": problem.code, "detail": problem.detail, **problem.extra}).decode()


def payments_of(operations: Sequence[BatchOperation]) -> dict[int, PaymentBody]:
    """Return the payments of a batch by place. Raises Problem 422 beyond PAYMENTS_MAX."""
    found = {
        i: operation.payment
        for i, operation in enumerate(operations)
        if isinstance(operation, BatchTopUp) and operation.payment is not None
    }
    if len(found) > PAYMENTS_MAX:
        raise invalid("/operations", f"Expected at most {PAYMENTS_MAX} operations with a payment")
    return found


async def _keep_payments(
    request: Request,
    payments: dict[int, PaymentBody],
    operations: Sequence[dict[str, Any]],
    hidden: dict[int, Problem],
) -> dict[int, Kept]:
    """Keep the payments of those operations that go on; one whose key stands for another card is added to `hidden`."""
    store, kept = store_of(request), {}
    for i, payment in payments.items():
        if i not in hidden:
            try:
                kept[i] = await keep_payment(store, operations[i], payment_of(payment))
            except OtherPayment:
                book_of(request).tally.take("topup", Reused())
                hidden[i] = refusal(Reused())
    return kept


async def batch(request: Request) -> Handled:
    """Claim the batch's key, then decide the operations; a retry meets the same results one by one."""
    asked_for = await BATCH.read(request)
    key, request_id, book = idempotency_key(request), request.request_id, book_of(request)
    stamp = book.fingerprints.stamp
    operations = [
        stamp(batch_fields(operation), operation.idempotency_key or f"{key}/{i}", request_id)
        for i, operation in enumerate(asked_for)
    ]
    payments = payments_of(asked_for)
    hidden = await hidden_operations(request, book, operations)
    made = await take_each(request, [drawn(request, fields["op"], fields.get("tenant")) or "" for fields in operations])
    asked = "".join(fields["fp"] + fields["key"] for fields in operations)
    claim = {"op": "claim", "fp": book.fingerprints.request(asked.encode()), "key": book.fingerprints.key(key)}
    verbs = [fields["op"] for fields in operations]
    async with in_time(len(operations)):
        claimed, durable = await book.claim(claim)
        if isinstance(claimed, Refused | Reused):
            await durable
            return refused_answer(claimed, request_id)
        kept = await _keep_payments(request, payments, operations, hidden) if payments else {}
        decided = iter(await book.decide_all([fields for i, fields in enumerate(operations) if i not in hidden]))
        await durable
    outcomes = [hidden[i] if i in hidden else next(decided) for i in range(len(operations))]
    for i, record in kept.items():
        await settle_payment(store_of(request), record, outcomes[i])
    results = ",".join(map(_result, verbs, outcomes))
    succeeded = sum(isinstance(outcome, Applied) for outcome in outcomes)
    replayed = all(isinstance(outcome, Applied | Refused) and outcome.replayed for outcome in outcomes)
    answer = json_answer(
        f'{{"results":[{results}],"succeeded":{succeeded},"failed":{len(outcomes) - succeeded}}}'.encode(),
        replayed=replayed,
    )
    return tell(answer, made)
