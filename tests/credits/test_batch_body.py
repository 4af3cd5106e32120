"""The body of a batch: the same operations whichever way it is read, and an event loop that goes on meanwhile."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from app.credits import batch_body
from app.credits.batch_body import OPERATION_MAX_CHARACTERS, BatchBody
from app.credits.wire import OPERATIONS_MAX, Batch
from app.web.body import BODY_MAX_BYTES, Body
from app.web.problems import Problem

CARD = "4111111111111111"
HELD_MAX_S = 0.05  # of processor time, between two turns of the event loop
PADDING = {"op": "consume", "tenant_id": "tenant-1", "amount": 1, "description": "x" * 400}


def operation(**fields: Any) -> dict[str, Any]:
    return {"op": "consume", "tenant_id": "tenant-1", "amount": 1} | fields


def large(*operations: Any) -> bytes:
    """A body above the size of any other call: so much padding, then these operations."""
    return json.dumps({"operations": [PADDING] * (BODY_MAX_BYTES // 400) + list(operations)}).encode()


async def refusal(data: bytes) -> tuple[int, str]:
    with pytest.raises(Problem) as refused:
        await BatchBody().decode(data)
    errors = refused.value.errors or ()
    return refused.value.status, errors[0].pointer if errors else ""


async def test_large_and_small_bodies_give_what_any_body_gives() -> None:
    each = [operation(), operation(op="topup", idempotency_key="k"), operation(op="reserve", ttl_seconds=9),
            operation(metadata={"a": [1, {"b": '\u20ac \\ "'}]}), operation(description="na\u00efve ] } , {")]  # fmt: skip
    spaced = json.dumps({"operations": [PADDING] * 200 + each}, indent=3).encode()

    for data in (json.dumps({"operations": each}).encode(), large(*each), spaced):
        assert await BatchBody().decode(data) == Body(Batch, limit_bytes=1 << 24).parse(data).operations


@pytest.mark.parametrize(
    ("wrong", "status", "pointer"),
    [
        (operation(amount=0), 422, "/amount"), (operation(extra=1), 422, "/extra"), (operation(tenant_id=CARD), 422, "/tenant_id"),
        (operation(idempotency_key="4111-1111-1111-1111"), 422, "/idempotency_key"), (7, 422, ""), ("x" * 3_000, 422, ""),
        ([[]], 422, ""), (operation(description="x" * OPERATION_MAX_CHARACTERS), 422, ""),
    ],
    ids=str,
)  # fmt: skip
async def test_the_place_of_a_fault_is_named_in_large_bodies_too(wrong: Any, status: int, pointer: str) -> None:
    data = large(wrong)

    assert await refusal(data) == (status, f"/operations/{BODY_MAX_BYTES // 400}{pointer}")


@pytest.mark.parametrize(
    "change",
    [lambda d: d[:-1], lambda d: d[:-2] + b",]}", lambda d: d + b"x", lambda d: d.replace(b"xx", b"\xff\xfe", 1),
     lambda d: d.replace(b'"amount": 1', b'"amount": 1, "amount": 2', 1), lambda d: d[:-2] + b" " * (BODY_MAX_BYTES + 1) + b"]}",
     lambda d: d.replace(b'"amount": 1', b'"amount": NaN', 1), lambda d: d[:-1] + b',"operations":[]}'],
)  # fmt: skip
async def test_what_is_no_json_is_refused_in_large_bodies_too(change: Any) -> None:
    assert (await refusal(change(large())))[0] == 400


async def test_a_large_body_has_one_field_and_so_many_operations() -> None:
    many = json.dumps({"operations": [operation()] * (OPERATIONS_MAX + 1)}).encode()

    assert await refusal(large().replace(b'"operations"', b'"other"')) == (422, "")
    assert await refusal(b" " + large()[1:]) == (422, "")
    assert await refusal(many) == (422, "/operations")


async def longest_hold_s(data: bytes) -> tuple[float, object]:
    """Decode while another task counts how much processor time passes between two of its turns, and return the most."""
    longest = 0.0
    ended = asyncio.Event()

    async def beat() -> None:
        nonlocal longest
        while not ended.is_set():
            since = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - since)

    beating = asyncio.create_task(beat())
    await asyncio.sleep(0)
    try:
        found: object = await BatchBody().decode(data)
    except Problem as problem:
        found = problem.code
    ended.set()
    await beating
    return longest, found


@pytest.mark.parametrize(
    "text",
    ["4-1-1-1-" * 500, "%252534" * 570, "card: 4, cvv: 1; " * 230, "4111111111111111D1" * 220, "%34\\u0034&#52;" * 260],
)
async def test_text_that_takes_long_to_search_does_not_hold_the_loop(text: str) -> None:
    held, operations = await longest_hold_s(large(*[operation(metadata={"m": text[:4_000]}, description=text[:500])] * 6))

    assert isinstance(operations, list)
    assert held < HELD_MAX_S


async def test_a_batch_has_a_budget_of_processor_time_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_body, "READ_CPU_MAX_S", 0.02)

    assert await refusal(large(*[operation(metadata={"m": "4-1-1-1-" * 500})] * 60)) == (422, "/operations")


async def test_batches_are_read_one_after_another() -> None:
    body, data = BatchBody(), large(*[operation(metadata={"m": "4-1-1-1-" * 200})] * 5)
    first, second = (asyncio.create_task(body.decode(data)) for _ in range(2))

    await first

    assert not second.done()
    assert await second == first.result()
