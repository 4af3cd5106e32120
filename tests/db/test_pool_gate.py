"""The gate in front of the pool: first come, first served, whatever is cancelled, late or moved."""

from __future__ import annotations

import asyncio
import random

import pytest

from app.db.gate import Gate, GateTimeout

LONG_S = 30.0


async def turns(times: int = 3) -> None:
    """Let the other tasks go on."""
    for _ in range(times):
        await asyncio.sleep(0)


async def test_those_who_wait_get_in_in_the_order_in_which_they_came() -> None:
    gate, order = Gate(1), []
    await gate.enter(LONG_S)

    async def visit(number: int) -> None:
        await gate.enter(LONG_S)
        order.append(number)
        gate.leave()

    tasks = [asyncio.create_task(visit(number)) for number in range(20)]
    await turns()
    gate.leave()
    await gate.enter(LONG_S)
    late = len(order)
    gate.leave()
    await asyncio.gather(*tasks)

    assert order == list(range(20))
    assert late == 20, "one who comes later does not overtake"
    assert (gate.inside, gate.waiting, gate.waits) == (0, 0, 21)


async def test_nobody_waits_while_there_is_room() -> None:
    gate = Gate(3)

    for _ in range(3):
        await gate.enter(0.0)

    assert (gate.inside, gate.waits, gate.wait_s) == (3, 0, 0.0)


async def test_who_gets_no_place_in_time_is_told_so_and_leaves_no_trace() -> None:
    gate = Gate(1)
    await gate.enter(LONG_S)

    with pytest.raises(GateTimeout):
        await gate.enter(0.001)
    gate.leave()
    await gate.enter(0.0)

    assert (gate.inside, gate.waiting, gate.timeouts) == (1, 0, 1)


async def test_a_place_given_to_somebody_who_is_cancelled_goes_to_the_next() -> None:
    gate = Gate(1)
    await gate.enter(LONG_S)
    first, second = (asyncio.create_task(gate.enter(LONG_S)) for _ in range(2))
    await turns()

    gate.leave()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await second

    assert first.cancelled()
    assert gate.inside == 1


async def test_a_raised_limit_lets_in_those_who_wait_and_a_lowered_one_lets_leave() -> None:
    gate = Gate(1)
    tasks = [asyncio.create_task(gate.enter(LONG_S)) for _ in range(5)]
    await turns()

    gate.move(4)
    await turns()
    raised = gate.inside
    gate.move(2)
    gate.leave()
    gate.leave()
    await turns()
    lowered = gate.inside
    gate.leave()
    await asyncio.gather(*tasks)

    assert (raised, lowered, gate.inside) == (4, 2, 2)


async def test_no_place_is_lost_or_doubled_among_many_who_come_wait_and_give_up() -> None:
    gate, rng, most = Gate(7), random.Random(4), 0

    async def visit() -> None:
        nonlocal most
        await gate.enter(rng.choice((0.0005, 0.01, LONG_S)))
        most = max(most, gate.inside)
        try:
            await asyncio.sleep(rng.random() * 0.002)
        finally:
            gate.leave()

    tasks = [asyncio.create_task(visit()) for _ in range(300)]
    for task in rng.sample(tasks, 60):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert most == 7
    assert (gate.inside, gate.waiting) == (0, 0)
