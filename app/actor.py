"""An actor: one owner of some state, a bounded mailbox, and one commit for everything that waits in it.

While a batch is being made durable the next one gathers, so batches grow with the load by themselves
and an idle actor answers after one round trip. Five promises, each with a test:

bounded   a full mailbox refuses at once (`InboxFull`), it never grows
batched   `receive` gets everything that waits, in one list, at most `batch_max` long
ordered   messages are received in the order in which they were accepted
crash     an exception in `receive` fails all open asks, stops the actor, and is reported to `on_crash`
drained   `stop` refuses new messages and finishes the accepted ones
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

# What a heavy ask may take beyond a light one: a batch of 10,000 gets 5 s more, at a tenth of the usual speed.
SECONDS_PER_UNIT = 0.0005

T = TypeVar("T")
M = TypeVar("M", bound="Ask[Any]")


class InboxFull(Exception):
    """The mailbox holds as much as it may: try again later."""


class ActorStopped(Exception):
    """The actor takes no more messages: it is stopping, or it has crashed."""


class AskTimeout(Exception):
    """The answer did not come in time. The work may still be done."""


# What takes an answer: the value and None, or None and the error. It must not raise, and it must not wait.
Reply = Callable[[T | None, Exception | None], None]


class Ask(Generic[T]):
    """A message that is answered with a `T`, once. `weight` is how many units of the mailbox it takes."""

    __slots__ = ("deadline_s", "reply")
    weight = 1

    def __init__(self) -> None:
        """Make an ask that no actor has accepted yet."""
        self.reply: Reply[T] | None = None
        self.deadline_s = 0.0

    @property
    def open(self) -> bool:
        """Whether the answer is still due."""
        return self.reply is not None

    def answer(self, value: T) -> None:
        """Give the answer; without effect when it is no longer due."""
        reply, self.reply = self.reply, None
        if reply is not None:
            reply(value, None)

    def fail(self, error: Exception) -> None:
        """Give `error` in place of the answer; without effect when none is due any more."""
        reply, self.reply = self.reply, None
        if reply is not None:
            reply(None, error)


class Actor(Generic[M]):
    """The mailbox and its loop. A subclass owns the state and writes `receive`."""

    def __init__(self, *, inbox_max: int, batch_max: int, ask_timeout_s: float, name: str) -> None:
        """`inbox_max` and `batch_max` count weight; `ask_timeout_s` bounds the wait for every answer."""
        self.name = name
        self._inbox_max = inbox_max
        self._batch_max = batch_max
        self._ask_timeout_s = ask_timeout_s
        self._inbox: deque[M] = deque()
        self._weight = 0
        self._asks: deque[M] = deque()  # of weight 1, so their deadlines rise
        self._heavy_asks: list[M] = []
        self._accepting = False
        self._stopping = False
        self._wake: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.rejected = 0  # messages that found the mailbox full, since the start

    async def receive(self, batch: list[M]) -> None:
        """Make the batch durable, then answer its asks. An exception here is a crash."""
        raise AssertionError(f"{type(self).__name__} must define receive() for {len(batch)} messages")

    async def gather(self) -> None:
        """Return when the messages that wait should become a batch; at once, unless a subclass knows better."""

    @property
    def waiting(self) -> int:
        """The weight of the messages that wait in the mailbox."""
        return self._weight

    def start(self, on_crash: Callable[[BaseException], None]) -> None:
        """Open the mailbox and start the loop in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._accepting = True
        self._task = self._loop.create_task(self._run(on_crash), name=f"actor {self.name}")
        self._loop.call_later(self._ask_timeout_s / 8, self._expire_asks)

    def ask(self, message: M) -> asyncio.Future[Any]:
        """Accept a message and return the future of its answer.

        Raises InboxFull or ActorStopped at once, and the future raises AskTimeout after `ask_timeout_s`.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def reply(value: object, error: Exception | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

        self.post(message, reply)
        return future

    def post(self, message: M, reply: Reply[Any]) -> None:
        """Accept a message whose answer, or error, goes to `reply` as soon as there is one.

        Cheaper than `ask` by a future and a turn of the event loop. Raises InboxFull or ActorStopped at once;
        `reply` gets AskTimeout after `ask_timeout_s`.
        """
        if self._loop is None:
            raise ActorStopped(self.name)
        message.deadline_s = self._loop.time() + self._ask_timeout_s + (message.weight - 1) * SECONDS_PER_UNIT
        self._tell(message)
        message.reply = reply
        (self._asks if message.weight == 1 else self._heavy_asks).append(message)

    def _tell(self, message: M) -> None:
        """Put a message into the mailbox. Raises InboxFull or ActorStopped at once."""
        if not self._accepting:
            raise ActorStopped(self.name)
        if self._weight + message.weight > self._inbox_max:
            self.rejected += 1
            raise InboxFull(self.name)
        self._inbox.append(message)
        self._weight += message.weight
        self._rouse()

    def put_back(self, messages: Iterable[M]) -> None:
        """Return accepted messages to the front of the mailbox, in their order, whatever its bound."""
        ordered = list(messages)
        self._inbox.extendleft(reversed(ordered))
        self._weight += sum(message.weight for message in ordered)
        self._rouse()

    async def stop(self) -> None:
        """Refuse new messages, finish the accepted ones, end the loop."""
        self._accepting = False
        self._stopping = True
        self._rouse()
        if self._task is not None:
            await self._task

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _run(self, on_crash: Callable[[BaseException], None]) -> None:
        batch: list[M] = []
        try:
            while batch := await self._next_batch():
                await self.receive(batch)
        except Exception as error:  # noqa: BLE001 - whatever broke, the state is suspect: stop, do not limp on
            self._accepting = False
            for message in [*batch, *self._inbox, *self._asks, *self._heavy_asks]:
                message.fail(ActorStopped(self.name))
            self._inbox.clear()
            self._asks.clear()
            self._heavy_asks.clear()
            on_crash(error)

    async def _next_batch(self) -> list[M]:
        while not self._inbox:
            if self._stopping:
                return []
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
            self._wake = None
        await self.gather()
        if self._weight <= self._batch_max:
            batch = list(self._inbox)
            self._inbox.clear()
            self._weight = 0
            return batch
        batch = [self._inbox.popleft()]
        weight = batch[0].weight
        while self._inbox and weight + self._inbox[0].weight <= self._batch_max:
            weight += self._inbox[0].weight
            batch.append(self._inbox.popleft())
        self._weight -= weight
        return batch

    def _expire_asks(self) -> None:
        """Fail the asks that are past their deadline, and forget those that have been answered."""
        assert self._loop is not None
        now_s = self._loop.time()
        asks = self._asks
        while asks and (asks[0].deadline_s <= now_s or not asks[0].open):
            asks.popleft().fail(AskTimeout(self.name))
        for heavy in self._heavy_asks:
            if heavy.deadline_s <= now_s:
                heavy.fail(AskTimeout(self.name))
        self._heavy_asks = [heavy for heavy in self._heavy_asks if heavy.open]
        if self._accepting or self._asks or self._heavy_asks:
            self._loop.call_later(self._ask_timeout_s / 8, self._expire_asks)
