"""The generator against real servers: what it counts, and what a stalling server cannot hide from it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Literal

import msgspec
import pytest
from aiohttp import web

from bench.load import LoadSpec, run_load
from bench.pulse import KernelPulse, LoopPulse
from bench.tally import DISCONNECTED
from bench.wire import WireError
from bench.workloads import Consume, CreateAccounts, Origin, ReserveCommit
from tests.lag import LOOP_TICK_S, Lag

STALL_SECONDS = 0.4
PATIENCE_SECONDS = 5.0


@asynccontextmanager
async def served(answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> AsyncIterator[Origin]:
    """A server on a free port whose every request is answered by `answer`."""
    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = int(runner.addresses[0][1])
        yield Origin("127.0.0.1", port, "token", "run")
    finally:
        await runner.cleanup()
        await asyncio.sleep(0)  # Transports close their sockets in the next turn.


class Stalling:
    """Answers at once, except that at request number `at` everything waits for STALL_SECONDS."""

    def __init__(self, at: int) -> None:
        """Count from nothing."""
        self._at = at
        self._seen = 0
        self._open = asyncio.Event()
        self._open.set()

    async def __call__(self, _request: web.BaseRequest) -> web.Response:
        """Answer, after the stall if there is one."""
        self._seen += 1
        if self._seen == self._at:
            self._open.clear()
            asyncio.get_running_loop().call_later(STALL_SECONDS, self._open.set)
        await self._open.wait()
        return web.json_response({})


def spec_for(origin: Origin, *, seconds: float, rate_per_s: float | None = None, connections: int = 4) -> LoadSpec:
    """A short run of consume without warm-up."""
    return LoadSpec(
        label="test",
        origin=origin,
        workload=Consume(10),
        connections=connections,
        seconds=seconds,
        warmup_seconds=0.0,
        drain_seconds=PATIENCE_SECONDS,
        rate_per_s=rate_per_s,
    )


async def test_open_loop_shows_a_stall_in_its_percentiles(lag: Lag) -> None:
    async with served(Stalling(at=50)) as origin:
        result = await run_load(spec_for(origin, seconds=1.0, rate_per_s=200))

    # 80 of 200 requests were due during the stall, 4 of them were on their way: the rest waited unsent.
    assert result.tasks.count == 200
    assert result.tasks.p99_ms > 0.9 * STALL_SECONDS * 1000
    assert result.tasks.p95_ms > 0.7 * STALL_SECONDS * 1000
    assert result.backlog_max > 0.7 * 200 * STALL_SECONDS
    # The delay is the server's: the generator was there in time.
    assert result.send_lag.p99_ms < 0.25 * STALL_SECONDS * 1000 + lag.largest_s * 1000


async def test_closed_loop_hides_the_same_stall_from_its_percentiles(lag: Lag) -> None:
    async with served(Stalling(at=50)) as origin:
        result = await run_load(spec_for(origin, seconds=1.0))

    # Only the requests in flight met it: why latencies at a fixed rate are measured in open loop.
    assert result.tasks.max_ms > 0.9 * STALL_SECONDS * 1000
    assert result.tasks.p95_ms < 0.5 * STALL_SECONDS * 1000 + lag.largest_s * 1000


async def test_open_loop_sends_all_that_was_due_even_after_the_measured_time() -> None:
    arrivals = 0

    async def answer(request: web.BaseRequest) -> web.Response:
        nonlocal arrivals
        arrivals += 1
        await asyncio.sleep(0.02)
        return web.json_response({})

    async with served(answer) as origin:
        # One connection carries at most 50 a second; 100 a second are offered.
        result = await run_load(spec_for(origin, seconds=0.5, rate_per_s=100, connections=1))

    assert arrivals == 50
    assert (result.unanswered, result.tasks.count) == (0, 50)
    assert result.tasks_per_s < 60


async def test_requests_that_are_never_answered_are_counted() -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with served(answer) as origin:
        spec = spec_for(origin, seconds=0.2, rate_per_s=100, connections=2)
        result = await run_load(msgspec.structs.replace(spec, drain_seconds=0.1))

    assert (result.unanswered, result.errors, result.tasks.count) == (20, 20, 0)


async def test_refusals_are_counted_by_status_and_give_no_latency() -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        busy = request.headers["Idempotency-Key"].endswith(("0", "5"))
        return web.json_response({}, status=503 if busy else 200)

    async with served(answer) as origin:
        result = await run_load(spec_for(origin, seconds=0.3))

    assert set(result.statuses) == {200, 503}
    assert result.errors == result.statuses[503]
    assert result.operations == result.statuses[200]
    assert result.tasks.count == pytest.approx(result.statuses[200], abs=4)


async def test_connections_that_the_server_cuts_are_counted_and_replaced() -> None:
    arrivals = 0

    async def answer(request: web.BaseRequest) -> web.Response:
        nonlocal arrivals
        arrivals += 1
        if arrivals == 10 and request.transport is not None:
            request.transport.abort()
        return web.json_response({})

    async with served(answer) as origin:
        result = await run_load(spec_for(origin, seconds=0.3, connections=1))

    assert result.statuses[DISCONNECTED] == 1
    assert result.statuses[200] > 10


async def test_connections_closed_after_their_answer_are_no_error() -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        response = web.json_response({})
        response.force_close()
        return response

    async with served(answer) as origin:
        result = await run_load(spec_for(origin, seconds=0.3, connections=2))

    assert result.errors == 0
    assert result.operations > 2


async def test_finite_workload_ends_when_all_its_tasks_are_answered() -> None:
    seen = set()

    async def answer(request: web.BaseRequest) -> web.Response:
        seen.add((await request.json())["tenant_id"])
        return web.json_response({}, status=201)

    async with served(answer) as origin:
        spec = LoadSpec(label="test", origin=origin, workload=CreateAccounts(0, 57), connections=8, seconds=0)
        result = await run_load(spec)

    assert len(seen) == 57
    assert (result.operations, result.errors) == (57, 0)


async def test_pair_counts_once_and_its_latency_covers_both_calls() -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        await asyncio.sleep(0.02)
        return web.json_response({"reservation_id": "r1"})

    async with served(answer) as origin:
        spec = LoadSpec(
            label="test",
            origin=origin,
            workload=ReserveCommit(5),
            connections=4,
            seconds=0.4,
            warmup_seconds=0.0,
            rate_per_s=50,
        )
        result = await run_load(spec)

    assert result.tasks.count == result.calls["reserve"].count == 20
    assert result.tasks.p50_ms >= 40
    assert 20 <= result.calls["commit"].p50_ms < result.tasks.p50_ms


async def test_answer_that_cannot_be_read_ends_the_run() -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write_eof(b"{}")
        return response

    async with served(answer) as origin:
        with pytest.raises(WireError, match="Content-Length"):
            await run_load(spec_for(origin, seconds=5.0))


async def test_measured_time_is_announced() -> None:
    events: list[str] = []

    async with served(Stalling(at=0)) as origin:
        await run_load(spec_for(origin, seconds=0.1), events.append)

    assert events == ["measuring", "measured"]


@pytest.mark.parametrize("kind", ["kernel", "loop"])
async def test_pulse_beats_until_it_is_stopped(kind: Literal["kernel", "loop"]) -> None:
    loop = asyncio.get_running_loop()
    beats = 0
    beaten: asyncio.Future[None] = loop.create_future()

    def tick() -> None:
        nonlocal beats
        beats += 1
        if beats == 5:
            beaten.set_result(None)

    started = loop.time()
    make = KernelPulse if kind == "kernel" else LoopPulse
    pulse = make(tick, first_at=started + 0.02, interval_seconds=0.002)
    await asyncio.wait_for(beaten, PATIENCE_SECONDS)
    took = loop.time() - started
    pulse.stop()
    pulse.stop()
    beats_at_stop = beats
    # Were it still armed, it would beat ten times before this timer.
    await asyncio.sleep(0.02)

    assert beats == beats_at_stop >= 5
    assert took >= 0.02 - LOOP_TICK_S
