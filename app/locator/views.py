"""Long lists as bytes: encoded in slices between turns of the event loop, once for all who ask for the same."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

SLICE: Final = 100  # values of one turn: below a millisecond
KEPT_MAX: Final = 256  # bodies: queries that nobody repeats must not pile up
KEPT_MAX_BYTES: Final = 16 * 1024 * 1024  # of bodies that may be asked for again

_encode: Final = msgspec.json.Encoder().encode


class Views:
    """Bodies by what they show; a newer revision of the same takes the place of the older one."""

    def __init__(self) -> None:
        """Begin empty."""
        self._kept: OrderedDict[Hashable, tuple[int, bytes]] = OrderedDict()
        self._size_bytes = 0

    async def list_of(self, subject: Hashable, revision: int, values: Iterable[Any], make: Callable[[Any], Any]) -> bytes:
        """Return the JSON array of what `make` makes of the values, as it was at a revision.

        `values` must not change meanwhile: give a snapshot's.
        """
        kept = self.kept(subject, revision)
        if kept is not None:
            return kept
        parts: list[bytes] = []
        for number, value in enumerate(values, 1):
            parts.append(_encode(make(value)))
            if number % SLICE == 0:
                await asyncio.sleep(0)
        body = b"[" + b",".join(parts) + b"]"
        self.keep(subject, revision, body)
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
