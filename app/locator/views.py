"""Long lists as bytes: encoded in slices between turns of the event loop, once for all who ask for the same.

What is too long to be held for everybody who reads slowly is not held at all: it is encoded again for each, as they read.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator

    from app.locator.instance import Instance

SLICE: Final = 100  # values of one turn: below a millisecond
KEPT_MAX: Final = 256  # bodies: queries that nobody repeats must not pile up
KEPT_MAX_BYTES: Final = 16 * 1024 * 1024  # of bodies that may be asked for again
WHOLE_MAX_BYTES: Final = 4 * 1024 * 1024  # of what instances tell, in one body: 10,000 usual ones

_encode: Final = msgspec.json.Encoder().encode


def is_long(instances: Iterable[Instance]) -> bool:
    """Whether a list of instances is to be made while it is read. 4 ms for 50,000."""
    return sum(len(one.told) for one in instances) > WHOLE_MAX_BYTES


def parts_of(values: Iterable[Any], make: Callable[[Any], Any]) -> Iterator[bytes]:
    """Yield the JSON array of what `make` makes of the values, SLICE of them at a time."""
    left = iter(values)
    start = b"["
    while some := list(islice(left, SLICE)):
        yield start + b",".join([_encode(make(value)) for value in some])
        start = b","
    yield b"]" if start == b"," else b"[]"


class Views:
    """Bodies by what they show; a newer revision of the same takes the place of the older one."""

    def __init__(self) -> None:
        """Begin empty."""
        self._kept: OrderedDict[Hashable, tuple[int, bytes]] = OrderedDict()
        self._making: dict[tuple[Hashable, int], asyncio.Task[bytes]] = {}
        self._size_bytes = 0
        self._turns = asyncio.Lock()

    async def turn(self) -> None:
        """Wait for a turn: one caller goes on at each of the event loop, so that many long lists delay nobody else."""
        async with self._turns:
            await asyncio.sleep(0)

    async def in_turn(self, parts: Iterator[bytes]) -> AsyncIterator[bytes]:
        """Yield parts, each made in a turn of its own."""
        while True:
            await self.turn()
            part = next(parts, None)
            if part is None:
                return
            yield part

    async def whole(self, parts: Iterator[bytes]) -> bytes:
        """Return all parts as one text, each made in a turn of its own."""
        return b"".join([part async for part in self.in_turn(parts)])

    async def list_of(self, subject: Hashable, revision: int, values: Iterable[Any], make: Callable[[Any], Any]) -> bytes:
        """Return the JSON array of what `make` makes of the values, as it was at a revision.

        `values` must not change meanwhile: give a snapshot's.
        """
        kept = self.kept(subject, revision)
        if kept is not None:
            return kept
        making = self._making.get((subject, revision))
        if making is None:
            making = asyncio.create_task(self._make(subject, revision, parts_of(values, make)))
            self._making[subject, revision] = making
        return await asyncio.shield(making)  # who leaves takes nothing from the others

    async def _make(self, subject: Hashable, revision: int, parts: Iterator[bytes]) -> bytes:
        try:
            body = await self.whole(parts)
            self.keep(subject, revision, body)
        finally:
            del self._making[subject, revision]
        return body

    def kept(self, subject: Hashable, revision: int) -> bytes | None:
        """Return the body of a subject, if it is the one of this revision."""
        found = self._kept.get(subject)
        if found is None or found[0] != revision:
            return None
        self._kept.move_to_end(subject)
        return found[1]

    def keep(self, subject: Hashable, revision: int, body: bytes) -> None:
        """Keep a body; the ones that were asked for longest ago give way."""
        before = self._kept.pop(subject, None)
        if before is not None:
            self._size_bytes -= len(before[1])
        self._kept[subject] = (revision, body)
        self._size_bytes += len(body)
        while self._size_bytes > KEPT_MAX_BYTES or len(self._kept) > KEPT_MAX:
            _, (_, dropped) = self._kept.popitem(last=False)
            self._size_bytes -= len(dropped)
