"""The load generator: many keep-alive connections in one small process, closed loop or open loop.

Run as its own process it reads a `LoadSpec` as JSON from standard input and writes JSON lines to standard
output: `{"event": "measuring"}` when the warm-up is over, `{"event": "measured"}` when the measured time is
over, and last the `LoadResult`. The bar goes to standard error.

Closed loop: every connection sends its next request when it has the answer to the one before.
Open loop: task number i is due at start + i / rate, whatever the server does. A task that finds no free
connection waits for one, and its latency counts from the time it was due, so a stalled server cannot hide
the requests that it kept waiting (coordinated omission). Nothing that was due is dropped.
"""

import asyncio
import gc
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Final, Protocol, cast

import msgspec
import uvloop

from bench.progress import Bar
from bench.pulse import Pulse, start_pulse
from bench.shadow_load import AnySpec, build_any
from bench.tally import EXPECTED_PER_S, LoadResult, Tally
from bench.wire import AnswerReader, WireError
from bench.workloads import Origin, Outcome, Workload

LEAD_SECONDS: Final = 0.05  # seconds between the last connect and the first request, so that none starts late
BAR_SECONDS: Final = 0.25  # seconds between two redraws; each costs the generator a few microseconds
RECONNECT_SECONDS: Final = 0.05  # seconds before a refused connect is tried again
FOREVER: Final = 1e12  # seconds; the end of a run that ends by its number of tasks
CUT_OFF: Final = Outcome(0, 1)


class LoadSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One run. `rate_per_s` makes it open loop; `seconds` 0 runs until the workload has no more tasks."""

    label: str
    origin: Origin
    workload: AnySpec
    connections: int
    seconds: float
    warmup_seconds: float = 0.5
    drain_seconds: float = 30.0  # how long answers to requests already due are waited for
    rate_per_s: float | None = None
    seed: int = 1
    bar: bool = False


class Feed(Protocol):
    """Decides what a free connection does next."""

    def serve(self, connection: "Connection", now: float) -> None:
        """Send the next task on this free connection, or keep the connection for later."""

    def owed(self) -> int:
        """Count tasks that were due and are not sent yet."""


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request in flight."""

    __slots__ = ("_call_from", "_due", "_kind", "_reader", "_run", "_transport", "busy")

    def __init__(self, run: "Run") -> None:
        """Belong to `run`, not connected yet."""
        self._run = run
        self._reader = AnswerReader()
        self._transport: asyncio.WriteTransport | None = None
        self._kind = 0
        self._due = 0.0
        self._call_from = 0.0
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # The transports of uvloop follow the interface without inheriting from it.
        self._transport = cast("asyncio.WriteTransport", transport)

    def send(self, kind: int, request: bytes, due: float) -> None:
        """Send the first request of a task that was due at `due`."""
        self.busy = True
        self._due = self._call_from = due
        self._write(kind, request)

    def _write(self, kind: int, request: bytes) -> None:
        self._kind = kind
        self._reader.keep_body = kind in self._run.workload.body_kinds
        if self._transport is not None:
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Read on; when the answer is complete, follow the chain or ask for the next task."""
        if not self.busy:
            self._run.fail(WireError("bytes without a request"))
            return
        try:
            status = self._reader.feed(data)
        except WireError as error:
            self._run.fail(error)
            return
        if status:
            self._answered(status, perf_counter())

    def _answered(self, status: int, now: float) -> None:
        run = self._run
        run.tally.answered(self._kind, status, self._call_from, now)
        try:
            step = run.workload.after(self._kind, status, self._reader.body)
            outcome = run.workload.outcome(self._kind, status, self._reader.body)
        except msgspec.MsgspecError as error:
            run.fail(error)
            return
        if step is not None and not self._reader.closes:
            self._call_from = now
            self._write(step.kind, step.request)
            return
        self.busy = False
        run.tally.completed(outcome, self._due, now)
        if self._reader.closes:
            self.abandon()
        else:
            run.feed.serve(self, now)
        run.check_end()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Count a request cut off, and let the run replace this connection."""
        if self.busy:
            self.busy = False
            self._run.tally.cut_off(CUT_OFF, perf_counter())
        self._transport = None
        self._run.lost(self)

    def abandon(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()


class ClosedLoop:
    """The next task goes out when the answer to the one before is in."""

    def __init__(self, run: "Run", until: float) -> None:
        """Start no task at or after `until`."""
        self._run = run
        self._until = until

    def serve(self, connection: Connection, now: float) -> None:
        """Send the next task at once."""
        if now < self._until:
            step = self._run.workload.first()
            if step is None:
                self._until = now
                return
            connection.send(step.kind, step.request, now)

    def owed(self) -> int:
        """Return 0: a closed loop owes nothing."""
        return 0


class OpenLoop:
    """Tasks are due at fixed times, whatever the server does."""

    def __init__(self, run: "Run", *, first_due: float, until: float, rate_per_s: float) -> None:
        """Plan one task every 1 / `rate_per_s` seconds from `first_due` to before `until`."""
        self._run = run
        self._first_due = first_due
        self._rate_per_s = rate_per_s
        self._planned = max(0, round((until - first_due) * rate_per_s))
        self._sent = 0
        self._idle: list[Connection] = []

    def serve(self, connection: Connection, now: float) -> None:
        """Send the task that has waited longest, or wait for one to become due."""
        due = self._first_due + self._sent / self._rate_per_s
        if self._sent >= self._planned or due > now:
            self._idle.append(connection)
            return
        step = self._run.workload.first()
        if step is None:
            raise RuntimeError("an open loop needs an endless workload")
        self._sent += 1
        connection.send(step.kind, step.request, due)

    def tick(self) -> None:
        """Send every task that is due, as far as connections are free, and note how many are not."""
        tally, now = self._run.tally, perf_counter()
        due = min(self._planned, int((now - self._first_due) * self._rate_per_s) + 1)
        while self._idle and self._sent < due:
            sent, due_at = self._sent, self._first_due + self._sent / self._rate_per_s
            self.serve(self._idle.pop(), now)
            if self._sent == sent:  # Rounding made this task due a moment later than `due` says.
                break
            tally.sent_idle(due_at, now)
        tally.backlog_max = max(tally.backlog_max, due - self._sent if not self._idle else 0)

    def drop(self, connection: Connection) -> None:
        """Forget a connection that was lost."""
        if connection in self._idle:
            self._idle.remove(connection)

    def owed(self) -> int:
        """Count the planned tasks that are not sent yet."""
        return self._planned - self._sent


class Run:
    """One run of one workload: its connections, its feed, its tally and its end."""

    def __init__(self, spec: LoadSpec, emit: Callable[[str], None]) -> None:
        """Prepare; `emit` is told the events `measuring` and `measured`."""
        self.spec = spec
        self.workload: Workload = build_any(spec.workload, spec.origin, spec.seed)
        self._emit = emit
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._connections: set[Connection] = set()
        self._reconnects: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._bar = Bar(spec.label, spec.seconds, "s" if spec.seconds else "done", shown=spec.bar)
        self._begin_at = 0.0
        self.tally = Tally((), measure_from=0.0, until=0.0, capacity=0)
        self.feed: Feed = ClosedLoop(self, 0.0)

    async def connect(self) -> None:
        """Open all connections.

        faults  OSError when the server refuses one
        """
        for _ in range(self.spec.connections):
            await self._open()

    async def _open(self) -> Connection:
        origin = self.spec.origin
        _, connection = await self._loop.create_connection(lambda: Connection(self), origin.host, origin.port)
        self._connections.add(connection)
        return connection

    async def measure(self) -> LoadResult:
        """Warm up, measure, drain.

        faults  WireError or msgspec.MsgspecError when an answer cannot be read
        """
        spec = self.spec
        start = perf_counter() + LEAD_SECONDS
        timed = spec.seconds > 0
        measure_from = start + spec.warmup_seconds if timed else start
        until = measure_from + spec.seconds if timed else FOREVER
        capacity = round((spec.rate_per_s or EXPECTED_PER_S) * (spec.seconds + 1)) if timed else 0
        self.tally = Tally(self.workload.kinds, measure_from=measure_from, until=until, capacity=capacity)
        pulse: Pulse | None = None
        if spec.rate_per_s is None:
            self.feed = ClosedLoop(self, until)
        else:
            open_loop = OpenLoop(self, first_due=start, until=until, rate_per_s=spec.rate_per_s)
            self.feed = open_loop
            pulse = start_pulse(open_loop.tick, first_at=start, interval_seconds=1 / spec.rate_per_s)
        self._begin_at = measure_from
        # A collection in the middle of a run would be charged to the server; nothing here makes cycles.
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            await self._paced(start, measure_from, until)
        finally:
            gc.enable()
            self._stopping = True
            if pulse is not None:
                pulse.stop()
            self._bar.clear()
            for connection in tuple(self._connections):
                connection.abandon()
            for task in tuple(self._reconnects):
                task.cancel()
        unanswered = sum(connection.busy for connection in self._connections) + self.feed.owed()
        seconds = spec.seconds if timed else perf_counter() - measure_from
        return self.tally.result(
            label=spec.label,
            connections=spec.connections,
            rate_per_s=spec.rate_per_s,
            seconds=seconds,
            unanswered=unanswered,
        )

    async def _paced(self, start: float, measure_from: float, until: float) -> None:
        await asyncio.sleep(start - perf_counter())
        for connection in tuple(self._connections):
            self.feed.serve(connection, perf_counter())
        await asyncio.sleep(measure_from - perf_counter())
        self.tally.begin()
        self._emit("measuring")
        drawing = self._loop.create_task(self._draw())
        try:
            deadline = None if until == FOREVER else until - perf_counter()
            self.check_end()
            await asyncio.wait({self._ended}, timeout=deadline)
            self.tally.finish()
            self._emit("measured")
            self.check_end()
            await asyncio.wait({self._ended}, timeout=self.spec.drain_seconds)
        finally:
            drawing.cancel()
        if self._ended.done():
            self._ended.result()

    async def _draw(self) -> None:
        while True:
            await asyncio.sleep(BAR_SECONDS)
            passed = perf_counter() - self._begin_at
            done = passed if self.spec.seconds else float(self.tally.completed_tasks)
            self._bar.draw(done, self.tally.operations / max(passed, BAR_SECONDS))

    def check_end(self) -> None:
        """End the run once its time is over and every request that was due has its answer."""
        over = perf_counter() >= self.tally.until or not self.spec.seconds
        if not over or self._ended.done() or self.feed.owed():
            return
        if not any(connection.busy for connection in self._connections):
            self._ended.set_result(None)

    def fail(self, error: Exception) -> None:
        """End the run with a fault: what was measured cannot be trusted."""
        if not self._ended.done():
            self._ended.set_exception(error)

    def lost(self, connection: Connection) -> None:
        """Replace a connection that ended while the run goes on."""
        self._connections.discard(connection)
        if isinstance(self.feed, OpenLoop):
            self.feed.drop(connection)
        if not self._stopping:
            task = self._loop.create_task(self._replace())
            self._reconnects.add(task)
            task.add_done_callback(self._reconnects.discard)

    async def _replace(self) -> None:
        while not self._stopping:
            try:
                connection = await self._open()
            except OSError:
                await asyncio.sleep(RECONNECT_SECONDS)
            else:
                self.feed.serve(connection, perf_counter())
                self.check_end()
                return


async def run_load(spec: LoadSpec, emit: Callable[[str], None] = lambda _: None) -> LoadResult:
    """Run `spec` in this process and return what it measured.

    faults  OSError when the server cannot be reached, WireError when it does not speak HTTP/1.1 with lengths
    """
    run = Run(spec, emit)
    await run.connect()
    return await run.measure()


def main() -> None:
    """Read a spec from standard input, run it, and write events and the result as JSON lines."""
    spec = msgspec.json.decode(sys.stdin.buffer.read(), type=LoadSpec)

    def emit(event: str) -> None:
        sys.stdout.write(f'{{"event":"{event}"}}\n')
        sys.stdout.flush()

    result = uvloop.run(run_load(spec, emit))
    sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")


if __name__ == "__main__":
    main()
