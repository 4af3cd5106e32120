"""An actor that notes what it receives, for the tests of actors."""

from __future__ import annotations

import asyncio

from app.actor import Actor, Ask


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
