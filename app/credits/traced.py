"""Ledger and writer of a server that traces: what a batch does is noted in the trace of every request that it decides.

A batch is shared by many requests. Each of them gets steps of its own with the times of the batch:

mailbox wait     from the request to the script call that decided its first operation
redis apply      that call, Lua included
commit           from the call's answer until the operation was durable
postgres append  in it: the statement, where this process writes the chain
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from app.audit.writer import Writer
from app.credits.ledger import Ledger
from app.credits.operation import Order
from app.traces import Trace, current

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Sequence

    from app.actor import Reply
    from app.audit.entry import Event
    from app.audit.writer import Lease
    from app.credits.ledger import Chunk
    from app.credits.operation import Outcome

APPENDS_KEPT: Final = 64  # statements that a late look still finds; two are under way at most


class TracedOrder(Order):
    """An order that knows for which request it is."""

    __slots__ = ("applied_ns", "decided", "posted_ns", "trace")

    def __init__(self, fields: list[dict[str, Any]]) -> None:
        """Belong to the request that runs."""
        super().__init__(fields)
        self.trace: Final[Trace | None] = current()
        self.posted_ns: Final = time.monotonic_ns()
        self.applied_ns = 0
        self.decided = False


class Append(NamedTuple):
    """One statement of the writer: the entries that it appended, and when."""

    first: int
    last: int
    started_ns: int
    ended_ns: int


class TracedWriter(Writer):
    """Remembers its last statements."""

    def __init__(self, *parts: Any) -> None:
        """`parts` are those of a Writer."""
        super().__init__(*parts)
        self._appends: deque[Append] = deque(maxlen=APPENDS_KEPT)

    async def commit(self, lease: Lease, events: Sequence[Event]) -> None:
        """Append, and remember when."""
        started_ns = time.monotonic_ns()
        await super().commit(lease, events)
        self._appends.append(Append(events[0].seq, events[-1].seq, started_ns, time.monotonic_ns()))

    def append_of(self, seq: int) -> Append | None:
        """Return the statement that appended an entry, None where another process did, or long ago."""
        return next((one for one in reversed(self._appends) if one.first <= seq <= one.last), None)


class TracedLedger(Ledger):
    """Notes when its batches were decided and durable."""

    def __init__(self, *parts: Any) -> None:
        """`parts` are those of a Ledger, its writer a TracedWriter."""
        super().__init__(*parts)
        self._deciding_ns = 0

    def submit(self, fields: list[dict[str, Any]]) -> asyncio.Future[list[Outcome]]:
        """See `Ledger.submit`."""
        self.refuse_if_away()
        return self.ask(TracedOrder(fields))

    def submit_one(self, fields: dict[str, Any], reply: Reply[list[Outcome]]) -> None:
        """See `Ledger.submit_one`."""
        self.refuse_if_away()
        self.post(TracedOrder([fields]), reply)

    async def _decide(self, chunk: Sequence[tuple[Order, int]]) -> bool:
        self._deciding_ns = started_ns = time.monotonic_ns()
        for order, trace in _traced(order for order, _ in chunk):
            if not order.decided:
                order.decided = True
                trace.note("mailbox wait", order.posted_ns, started_ns, self._facts())
        try:
            return await super()._decide(chunk)
        except Exception:
            self._note_apply(chunk, failed=True)
            raise

    async def _take(self, chunk: Sequence[tuple[Order, int]], generation: int, reply: list[Any]) -> bool:
        self._note_apply(chunk, failed=False)
        return await super()._take(chunk, generation, reply)

    def _release(self, chunk: Chunk, generation: int, *, failed: bool) -> list[Order]:
        now_ns = time.monotonic_ns()
        append = self._writer.append_of(chunk.head) if isinstance(self._writer, TracedWriter) else None
        for order, trace in _traced(chunk.orders):
            wait = trace.note("commit", order.applied_ns, now_ns, self._facts(), failed=failed)
            if append is not None and append.ended_ns > order.applied_ns:
                facts = self._facts(entries=append.last - append.first + 1)
                trace.note("postgres append", append.started_ns, append.ended_ns, facts, inside=wait)
        return super()._release(chunk, generation, failed=failed)

    def _note_apply(self, chunk: Sequence[tuple[Order, int]], *, failed: bool) -> None:
        now_ns = time.monotonic_ns()
        for order, trace in _traced(order for order, _ in chunk):
            trace.note("redis apply", self._deciding_ns, now_ns, self._facts(operations=len(chunk)), failed=failed)
            order.applied_ns = now_ns

    def _facts(self, **more: int) -> dict[str, int]:
        return {"shard": self._shard.number, **more}


def _traced(orders: Iterable[Order]) -> list[tuple[TracedOrder, Trace]]:
    """Return the orders whose requests are traced and not over, each once."""
    return [
        (order, order.trace)
        for order in dict.fromkeys(orders)
        if isinstance(order, TracedOrder) and order.trace is not None and not order.trace.closed
    ]
