"""The five promises of an actor, and what follows from them."""

from __future__ import annotations

import asyncio
import gc
import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.actor import Actor, ActorStopped, Ask, AskTimeout, InboxFull


class Number(Ask[int]):
    """Asks for its own value; `weight` is that of the mailbox."""

    __slots__ = ("value", "weight")

    def __init__(self, value: int, weight: int = 1) -> None:
        super().__init__()
        self.value = value
        self.weight = weight


class Recorder(Actor[Number]):
    """Answers every number with itself, once its gate is open; breaks at a number below zero."""

    def __init__(self, *, inbox_max: int = 10, batch_max: int = 4, ask_timeout_s: float = 60.0) -> None:
        super().__init__(inbox_max=inbox_max, batch_max=batch_max, ask_timeout_s=ask_timeout_s, name="recorder")
        self.gate = asyncio.Event()
        self.batches: list[list[int]] = []
        self.crashes: list[BaseException] = []

    async def receive(self, batch: list[Number]) -> None:
        await self.gate.wait()
        self.batches.append([message.value for message in batch])
        for message in batch:
            if message.value < 0:
                raise ValueError(f"{message.value} is below zero")
            message.answer(message.value)

    @property
    def received(self) -> list[int]:
        return [value for batch in self.batches for value in batch]

    def run(self) -> Recorder:
        self.start(self.crashes.append)
        return self


async def turn() -> None:
    """Let everything that can run now run."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_an_ask_is_answered() -> None:
    actor = Recorder().run()
    actor.gate.set()

    assert await actor.ask(Number(7)) == 7
    await actor.stop()


async def test_bounded_a_full_mailbox_refuses_at_once_and_keeps_what_it_has() -> None:
    actor = Recorder(inbox_max=3).run()
    first = [actor.ask(Number(0))]
    await turn()
    first += [actor.ask(Number(value)) for value in (1, 2, 3)]

    with pytest.raises(InboxFull):
        actor.ask(Number(4))
    assert actor.waiting == 3
    actor.gate.set()

    assert await asyncio.gather(*first) == [0, 1, 2, 3]
    assert await actor.ask(Number(5)) == 5
    await actor.stop()


async def test_bounded_by_weight_not_by_count() -> None:
    actor = Recorder(inbox_max=10).run()
    actor.ask(Number(0))
    await turn()
    heavy = actor.ask(Number(1, weight=9))

    with pytest.raises(InboxFull):
        actor.ask(Number(2, weight=2))
    light = actor.ask(Number(3, weight=1))
    actor.gate.set()

    assert (await heavy, await light) == (1, 3)
    await actor.stop()


async def test_batched_what_gathers_while_one_batch_runs_is_the_next_one() -> None:
    actor = Recorder(batch_max=4).run()
    asks = [actor.ask(Number(0))]
    await turn()
    asks += [actor.ask(Number(value)) for value in range(1, 8)]
    actor.gate.set()
    await asyncio.gather(*asks)

    assert actor.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]
    await actor.stop()


async def test_batched_by_weight_and_a_message_above_the_limit_goes_alone() -> None:
    actor = Recorder(inbox_max=100, batch_max=4).run()
    asks = [actor.ask(Number(0))]
    await turn()
    asks += [actor.ask(Number(value, weight)) for value, weight in ((1, 3), (2, 2), (3, 2), (4, 9), (5, 1), (6, 3), (7, 1))]
    actor.gate.set()
    await asyncio.gather(*asks)

    assert actor.batches == [[0], [1], [2, 3], [4], [5, 6], [7]]
    await actor.stop()


async def test_an_idle_actor_answers_each_message_in_its_own_batch() -> None:
    actor = Recorder().run()
    actor.gate.set()

    for value in range(3):
        assert await actor.ask(Number(value)) == value

    assert actor.batches == [[0], [1], [2]]
    await actor.stop()


async def test_ordered_messages_are_received_as_they_were_accepted() -> None:
    actor = Recorder(inbox_max=1000, batch_max=7).run()
    actor.gate.set()
    asks = []
    for value in range(500):
        asks.append(actor.ask(Number(value)))
        if value % 13 == 0:
            await turn()
    await asyncio.gather(*asks)

    assert actor.received == list(range(500))
    await actor.stop()


async def test_crash_fails_every_open_ask_stops_and_reports() -> None:
    actor = Recorder(batch_max=2).run()
    asks = [actor.ask(Number(value)) for value in (1, -1, 2, 3, 4)]
    actor.gate.set()

    results = await asyncio.gather(*asks, return_exceptions=True)

    assert results[0] == 1
    assert all(isinstance(result, ActorStopped) for result in results[1:])
    assert [str(error) for error in actor.crashes] == ["-1 is below zero"]
    assert actor.batches == [[1, -1]]
    with pytest.raises(ActorStopped):
        actor.ask(Number(5))
    await actor.stop()


async def test_crash_fails_asks_whose_batch_was_received_but_not_answered() -> None:
    class Forgetful(Recorder):
        async def receive(self, batch: list[Number]) -> None:
            if batch[0].value < 0:
                raise ValueError("broken")

    actor = Forgetful().run()
    kept = actor.ask(Number(1))
    await turn()
    actor.ask(Number(-1)).add_done_callback(lambda future: future.exception())
    await turn()

    with pytest.raises(ActorStopped):
        await asyncio.wait_for(kept, 5)
    await actor.stop()


async def test_drained_stop_finishes_what_was_accepted_and_refuses_the_rest() -> None:
    actor = Recorder(batch_max=2).run()
    asks = [actor.ask(Number(value)) for value in range(5)]
    stopping = asyncio.create_task(actor.stop())
    await turn()

    with pytest.raises(ActorStopped):
        actor.ask(Number(9))
    assert not stopping.done()
    actor.gate.set()
    await stopping

    assert [ask.result() for ask in asks] == [0, 1, 2, 3, 4]
    assert actor.received == [0, 1, 2, 3, 4]


async def test_stop_of_an_actor_that_never_started_returns() -> None:
    await Recorder().stop()


async def test_an_actor_that_has_not_started_takes_nothing() -> None:
    with pytest.raises(ActorStopped):
        Recorder().ask(Number(1))


async def test_an_ask_times_out_and_its_late_answer_does_no_harm() -> None:
    actor = Recorder(ask_timeout_s=0.05).run()
    first = actor.ask(Number(1))

    with pytest.raises(AskTimeout):
        await first
    actor.gate.set()

    assert await actor.ask(Number(2)) == 2
    assert actor.received == [1, 2]
    await actor.stop()


async def test_asks_time_out_in_the_order_of_their_deadlines() -> None:
    actor = Recorder(ask_timeout_s=0.1).run()
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    asks = [actor.ask(Number(value)) for value in range(3)]

    results = await asyncio.gather(*asks, return_exceptions=True)

    assert all(isinstance(result, AskTimeout) for result in results)
    assert 0.1 <= loop.time() - started_s < 0.2
    actor.gate.set()
    await actor.stop()


async def test_an_asker_that_goes_away_does_not_disturb_the_others() -> None:
    actor = Recorder().run()
    gone, stays = actor.ask(Number(1)), actor.ask(Number(2))
    gone.cancel()
    actor.gate.set()

    assert await stays == 2
    assert actor.received == [1, 2]
    await actor.stop()


async def test_put_back_returns_messages_to_the_front_in_their_order_whatever_the_bound() -> None:
    actor = Recorder(inbox_max=3, batch_max=10).run()
    actor.ask(Number(0))
    await turn()
    actor.ask(Number(3))
    actor.ask(Number(4))

    actor.put_back([Number(1, weight=5), Number(2)])

    assert actor.waiting == 8
    with pytest.raises(InboxFull):
        actor.ask(Number(5))
    actor.gate.set()
    await actor.stop()
    assert actor.received == [0, 1, 2, 3, 4]


async def test_answering_or_failing_twice_has_no_effect() -> None:
    actor = Recorder().run()
    message = Number(1)
    asked = actor.ask(message)

    message.answer(1)
    message.answer(2)
    message.fail(ValueError("late"))

    assert await asked == 1
    assert not message.open
    actor.gate.set()
    await actor.stop()


async def test_answered_asks_are_let_go_but_for_the_last_batch() -> None:
    class Tracked(Number):
        """Told apart from the messages of other tests."""

    actor = Recorder(inbox_max=1000, ask_timeout_s=0.04).run()
    actor.gate.set()
    for value in range(100):
        await actor.ask(Tracked(value))

    deadline_s = asyncio.get_running_loop().time() + 5
    while sum(isinstance(thing, Tracked) for thing in gc.get_objects()) > 1:
        assert asyncio.get_running_loop().time() < deadline_s, "answered messages are kept"
        await asyncio.sleep(0.005)
    await actor.stop()


class Stepping(Recorder):
    """Lets one batch through for each permit."""

    def __init__(self, **bounds: int) -> None:
        super().__init__(**bounds)
        self.permits = asyncio.Semaphore(0)
        self.gate.set()

    async def receive(self, batch: list[Number]) -> None:
        await self.permits.acquire()
        await super().receive(batch)


class Mailbox(RuleBasedStateMachine):
    """An actor beside two plain lists: what it works on, and what waits."""

    INBOX_MAX = 12
    BATCH_MAX = 5

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.actor = self.runner.run(self._start())
        self.values = itertools.count()
        self.working: list[int] = []
        self.waiting: list[tuple[int, int]] = []
        self.passed: list[list[int]] = []
        self.asks: dict[int, asyncio.Future[Any]] = {}

    async def _start(self) -> Stepping:
        actor = Stepping(inbox_max=self.INBOX_MAX, batch_max=self.BATCH_MAX)
        actor.run()
        return actor

    def _take(self) -> None:
        """What an idle actor takes: as many messages as fit, one at least."""
        weight = 0
        while not self.working or (self.waiting and weight + self.waiting[0][1] <= self.BATCH_MAX):
            if not self.waiting:
                return
            value, own = self.waiting.pop(0)
            self.working.append(value)
            weight += own

    @rule(weight=st.integers(1, 6))
    def ask(self, weight: int) -> None:
        fits = sum(own for _, own in self.waiting) + weight <= self.INBOX_MAX
        message = Number(next(self.values), weight)

        async def send() -> None:
            if fits:
                self.asks[message.value] = self.actor.ask(message)
            else:
                with pytest.raises(InboxFull):
                    self.actor.ask(message)
            await turn()

        self.runner.run(send())
        if fits:
            self.waiting.append((message.value, weight))
            if not self.working:
                self._take()

    @rule(weights=st.lists(st.integers(1, 6), max_size=3))
    def put_back(self, weights: list[int]) -> None:
        messages = [Number(next(self.values), weight) for weight in weights]

        async def send() -> None:
            self.actor.put_back(messages)
            await turn()

        self.runner.run(send())
        self.waiting[:0] = [(message.value, message.weight) for message in messages]
        if not self.working:
            self._take()

    @precondition(lambda self: self.working)
    @rule()
    def finish_a_batch(self) -> None:
        async def permit() -> None:
            self.actor.permits.release()
            await turn()

        self.runner.run(permit())
        self.passed.append(self.working)
        self.working = []
        self._take()

    @invariant()
    def both_say_the_same(self) -> None:
        assert self.actor.waiting == sum(weight for _, weight in self.waiting)
        assert self.actor.batches == self.passed
        done = {value for batch in self.passed for value in batch}
        assert {value for value, ask in self.asks.items() if ask.done()} == done & set(self.asks)

    def teardown(self) -> None:
        async def drain() -> None:
            for _ in range(len(self.waiting) + 1):
                self.actor.permits.release()
            await self.actor.stop()
            for value, ask in self.asks.items():
                assert await ask == value

        self.runner.run(drain())
        self.runner.close()
        finished = [value for batch in self.passed for value in batch]
        assert self.actor.received == [*finished, *self.working, *(value for value, _ in self.waiting)]


TestMailbox = Mailbox.TestCase
TestMailbox.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
