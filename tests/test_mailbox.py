"""The mailbox of an actor beside plain lists, through any sequence of what can happen to it."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.actor import InboxFull
from tests.actor_recorder import Number, Recorder, turn


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
