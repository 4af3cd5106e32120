"""Units that wait to be enrolled: how many go together, what is refused, and that every one of them is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from app.actor import ActorStopped, InboxFull
from app.shadow import enrolment
from app.shadow.counters import Enrolled, Forgot
from app.shadow.enrolment import BATCH_MAX, CALLS_MAX, Enrol, Enrolment


class Desk:
    """An enrolment whose calls wait until they are let go, each with the units that it carries."""

    def __init__(self) -> None:
        """Begin with nothing called."""
        self.calls: list[list[str]] = []
        self.gates: list[asyncio.Future[None]] = []
        self.followed: list[int] = []
        self.late: list[str] = []  # units that come right after a call has ended
        self.crashes: list[BaseException] = []
        self.answers: dict[str, tuple[int, int] | Exception] = {}
        self.enrolment = Enrolment("x", self.write, self.follow, self.crashes.append)

    async def write(self, units: Sequence[str | int]) -> Enrolled:
        """Take a call; give every unit what it asks for, of version 7."""
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.calls.append([str(unit) for unit in units[::3]])
        self.gates.append(gate)
        await gate
        return Enrolled(7, [int(one) for one in units[1::3]])

    async def follow(self, version: int) -> None:
        """Note the version that was told; the call has nothing to do after this."""
        self.followed.append(version)
        for unit in self.late:
            asyncio.get_running_loop().call_soon(self.post, unit)

    def post(self, *units: str) -> None:
        """Ask for variant 1 with version 3."""
        for unit in units:

            def reply(one: tuple[int, int] | None, error: Exception | None, unit: str = unit) -> None:
                assert unit not in self.answers
                self.answers[unit] = error or one or AssertionError()

            self.enrolment.post(Enrol(unit, 3, 1, reply))

    async def turns(self) -> None:
        """Let everything happen that is ready to."""
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.fixture
async def desk() -> Desk:
    return Desk()


async def test_calls_overlap_and_what_comes_while_all_are_away_goes_together(desk: Desk) -> None:
    for number in range(CALLS_MAX + 3):
        desk.post(f"u{number}")
        await desk.turns()
    before = list(desk.calls)
    desk.gates[1].set_result(None)
    await desk.turns()

    assert before == [[f"u{number}"] for number in range(CALLS_MAX)]
    assert desk.calls[CALLS_MAX:] == [[f"u{number}" for number in range(CALLS_MAX, CALLS_MAX + 3)]]
    assert (desk.answers, desk.followed) == ({"u1": (3, 1)}, [7])


async def test_a_unit_that_comes_right_after_a_call_has_ended_is_not_left_behind(desk: Desk) -> None:
    for number in range(CALLS_MAX):
        desk.post(f"u{number}")
        await desk.turns()
    desk.late = ["late"]

    desk.gates[0].set_result(None)
    await desk.turns()

    assert desk.calls[CALLS_MAX:] == [["late"]]


async def test_a_call_carries_a_bounded_number_and_more_than_may_wait_is_refused(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolment, "WAITING_MAX", BATCH_MAX + 10)
    units = [f"u{number}" for number in range(BATCH_MAX + 10)]
    desk.post(*units)

    with pytest.raises(InboxFull):
        desk.post("one more")
    await desk.turns()
    desk.gates[0].set_result(None)
    await desk.turns()

    assert desk.calls == [units[:BATCH_MAX], units[BATCH_MAX:]]


async def test_an_outage_is_told_to_the_units_of_the_call_and_ends_nothing(desk: Desk) -> None:
    desk.post("a", "b")
    await desk.turns()
    desk.gates[0].set_exception(Forgot("x"))
    await desk.turns()
    desk.post("c")
    await desk.turns()
    desk.gates[1].set_result(None)
    await desk.turns()

    assert {unit: type(one) for unit, one in desk.answers.items()} == {"a": Forgot, "b": Forgot, "c": tuple}
    assert desk.crashes == []


async def test_an_unknown_fault_stops_it_and_leaves_nobody_waiting(desk: Desk) -> None:
    for number in range(CALLS_MAX):
        desk.post(f"u{number}")
        await desk.turns()
    desk.post("waits")
    desk.gates[0].set_exception(ValueError("unheard of"))
    await desk.turns()

    assert [type(desk.answers[unit]) for unit in ("u0", "waits")] == [ActorStopped, ActorStopped]
    assert [type(one) for one in desk.crashes] == [ValueError]
    with pytest.raises(ActorStopped):
        desk.post("later")


async def test_stopping_finishes_what_was_accepted(desk: Desk) -> None:
    desk.post("a")
    await desk.turns()
    stopping = asyncio.create_task(desk.enrolment.stop())
    await desk.turns()
    with pytest.raises(ActorStopped):
        desk.post("b")
    desk.gates[0].set_result(None)
    await stopping

    assert desk.answers == {"a": (3, 1)}
