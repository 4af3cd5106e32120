"""The locator over HTTP: lookups, registrations, heartbeats, failover of a killed instance, restoring after a restart, and
what others feel of a key that registers without end.

    python -m bench.locator_http
    python -m bench.locator_http --sizes 1000 --seconds 2

One server on its own stores; the generator is a process of its own, as in `python -m bench`. Beside wall-clock figures,
which depend on what else the machine does, it prints the server's CPU time for each call, which hardly does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import msgspec
import psutil
import uvloop

from app.locator.admission import RATE
from app.locator.balancing import STRATEGIES
from app.locator.opening import INSTANCES_OF_KEY_MAX
from bench.load import LoadSpec
from bench.rounds import GeneratorError, running_generator
from bench.servers import HOST, ServerError, ServerProcess, free_port
from bench.tally import LoadResult
from bench.workloads import (
    Alive,
    Beat,
    Consume,
    CreateAccounts,
    LookUp,
    Origin,
    Register,
    TopUpBatch,
    WorkloadSpec,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager

SIZES: Final = (10, 1_000, 10_000)
SECONDS: Final = 5.0
CONNECTIONS: Final = (1, 16)
REGISTERING: Final = 32  # connections of registrations
P50_MS_MAX: Final = 0.3  # targets: of light load, one connection
P99_MS_MAX: Final = 1.0
PER_S_MIN: Final = 8_000  # target at 16 connections
FAILOVER_REPORTED_S_MAX: Final = 1.0
FAILOVER_SILENT_S_MAX: Final = 25.0
FAILOVER_INSTANCES: Final = 5
FAILOVER_CALLERS: Final = 8
POLL_S: Final = 0.02
FLOODING: Final = 64  # connections of the one that floods
FLOOD_SECONDS_MAX: Final = 600.0
FLOOD_MAX: Final = 1_000_000  # instances that it tries to register
FLOOD_NICE: Final = 19  # it gets what the others leave of the processors: only the server's part is measured
BESIDE_SERVICE: Final = "beside"
BESIDE_TENANTS: Final = 100
LOOKUPS_PER_S: Final = 200.0
CONSUMES_PER_S: Final = 50.0
BESIDE_CONNECTIONS: Final = 8


class Bench:
    """One server, and what is asked of it."""

    def __init__(self, directory: Path, seconds: float) -> None:
        """`directory` takes the stores; a measured run takes `seconds`."""
        self._directory = directory
        self._seconds = seconds
        self.origin = Origin(HOST, free_port(), secrets.token_urlsafe(32), "locator")
        self.server: ServerProcess | None = None

    async def start(self) -> None:
        """Start the server on what the directory holds. Raises ServerError."""
        arguments = [
            "-m",
            "app",
            "serve",
            "--host",
            HOST,
            "--port",
            str(self.origin.port),
            "--shadow-port",
            str(free_port()),
        ]
        self.server = await ServerProcess.start(
            "shieldx", [*arguments, "--data-dir", str(self._directory / "data")],
            environment={"SHIELDX_ROOT_KEY": self.origin.token}, origin=self.origin, log=self._directory / "log",
        )  # fmt: skip

    async def stop(self) -> None:
        """Stop it, with its stores."""
        if self.server is not None:
            await self.server.stop()

    def cpu_s(self) -> float:
        """CPU seconds of the server so far."""
        assert self.server is not None
        times = psutil.Process(self.server.pid).cpu_times()
        return float(times.user + times.system)

    async def load(
        self, workload: WorkloadSpec, connections: int, *, seconds: float | None = None, rate_per_s: float | None = None
    ) -> tuple[LoadResult, float]:
        """Run a workload and return what it measured, and the server's CPU microseconds for each call.

        faults  GeneratorError
        """
        spec = LoadSpec(
            label="locator", origin=msgspec.structs.replace(self.origin, run=secrets.token_hex(4)), workload=workload,
            connections=connections, warmup_seconds=0.5, rate_per_s=rate_per_s,
            seconds=self._seconds if seconds is None else seconds,
        )  # fmt: skip
        before_s = self.cpu_s()
        async with running_generator() as generator:
            output, _ = await generator.communicate(msgspec.json.encode(spec))
        if generator.returncode:
            raise GeneratorError(f"the generator ended with {generator.returncode}")
        result = msgspec.json.decode(output.splitlines()[-1], type=LoadResult)
        share = result.seconds / (result.seconds + (0.5 if spec.seconds else 0.0))  # the warm-up costs CPU, too
        calls = sum(latency.count for latency in result.calls.values())
        return result, (self.cpu_s() - before_s) * share * 1e6 / max(1, calls)

    @contextlib.asynccontextmanager
    async def flood(self, workload: WorkloadSpec, token: str) -> AsyncIterator[None]:
        """Run a workload in a process of its own, with a key of its own, for as long as the context is open."""
        spec = LoadSpec(
            label="flood", origin=msgspec.structs.replace(self.origin, token=token), workload=workload,
            connections=FLOODING, warmup_seconds=0.0, seconds=FLOOD_SECONDS_MAX,
        )  # fmt: skip
        async with running_generator() as generator:
            psutil.Process(generator.pid).nice(FLOOD_NICE)
            assert generator.stdin is not None
            generator.stdin.write(msgspec.json.encode(spec))
            generator.stdin.close()
            yield

    async def instances(self) -> int:
        """Return how many instances are registered."""
        async with self.session() as session, session.get("/ready") as answer:
            return int((await answer.json())["checks"]["locator"]["instances"])

    def session(self) -> aiohttp.ClientSession:
        """Return a client that carries the key."""
        headers = {"Authorization": f"Bearer {self.origin.token}"}
        return aiohttp.ClientSession(f"http://{HOST}:{self.origin.port}", headers=headers)


def tell(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def look_up(bench: Bench, size: int, strategies: Sequence[str]) -> None:
    """Measure registrations, lookups by each strategy, lookups with reports, heartbeats of one service of a size."""
    service = f"s{size}"
    result, cpu_us = await bench.load(Register(service, size), REGISTERING, seconds=0.0)
    tell(f"{size:>6} instances   registered {result.tasks_per_s:8,.0f}/s   {cpu_us:6.0f} us CPU   {result.errors} errors")
    for strategy in strategies:
        for connections in CONNECTIONS:
            _tell_lookups(strategy, connections, *await bench.load(LookUp(service, strategy), connections))
    result, cpu_us = await bench.load(LookUp(service, report=True), CONNECTIONS[-1])
    tell(f"       lookup and report          {result.tasks_per_s:8,.0f} pairs/s   {cpu_us:6.0f} us CPU a call")
    result, cpu_us = await bench.load(Beat(service, size), CONNECTIONS[-1])
    tell(f"       heartbeats                 {result.tasks_per_s:8,.0f}/s   {cpu_us:6.0f} us CPU   {result.errors} errors")


def _tell_lookups(strategy: str, connections: int, result: LoadResult, cpu_us: float) -> None:
    latency = result.calls["lookup"]
    verdict = ""
    if strategy == "p2c":
        light = connections == 1
        met = latency.p50_ms <= P50_MS_MAX and latency.p99_ms <= P99_MS_MAX if light else result.tasks_per_s >= PER_S_MIN
        target = f"p50 <= {P50_MS_MAX} and p99 <= {P99_MS_MAX} ms" if light else f">= {PER_S_MIN:,}/s"
        verdict = f"   target {target}: {'met' if met else 'missed'}"
    tell(
        f"       {strategy:<17} {connections:>3} conn. {result.tasks_per_s:8,.0f}/s   p50 {latency.p50_ms:.3f}"
        f"  p99 {latency.p99_ms:.3f} ms   {cpu_us:4.0f} us CPU   {result.errors} errors{verdict}"
    )


class Targets:
    """Real listeners that count as instances; one of them can be killed."""

    def __init__(self) -> None:
        """Nothing listens yet."""
        self.servers: list[asyncio.Server] = []

    async def start(self) -> list[int]:
        """Listen, and return the ports."""

        async def accept(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        self.servers = [await asyncio.start_server(accept, HOST, 0) for _ in range(FAILOVER_INSTANCES)]
        return [int(server.sockets[0].getsockname()[1]) for server in self.servers]

    async def stop(self) -> None:
        """Close what still listens."""
        for server in self.servers:
            server.close()


async def fail_over(bench: Bench, *, reported: bool) -> float:
    """Kill one of several instances under load and return the seconds from then to its last lookup.

    reported  callers report failed calls; else only heartbeats tell
    """
    service = f"failover-{reported}".lower()
    targets = Targets()
    ports = await targets.start()
    last_s = 0.0
    dead = ports[0]
    stopping = asyncio.Event()
    async with bench.session() as session:
        for port in ports:
            await _done(session.put(f"/v1/services/{service}/instances/i{port}", json={"host": HOST, "port": port}))

        async def beat() -> None:
            while not stopping.is_set():
                for port in ports:
                    if port != dead or not killed_s:
                        await _done(session.post(f"/v1/services/{service}/instances/i{port}/heartbeat"))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stopping.wait(), 10.0)

        async def call() -> None:
            nonlocal last_s
            while not stopping.is_set():
                async with session.get(f"/v1/services/{service}/lookup") as answer:
                    found: dict[str, Any] = await answer.json()
                port = found["instance"]["port"]
                if port == dead:
                    last_s = time.monotonic()
                good = await _reaches(port)
                report = {"lease_id": found["lease_id"], "ok": good or not reported}
                await _done(session.post(f"/v1/services/{service}/report", json=report))
                await asyncio.sleep(POLL_S / 4)

        killed_s = 0.0
        tasks = [asyncio.create_task(work) for work in (beat(), *(call() for _ in range(FAILOVER_CALLERS)))]
        await asyncio.sleep(1.0)
        targets.servers[0].close()
        killed_s = time.monotonic()
        quiet_s = 2.0 if reported else FAILOVER_SILENT_S_MAX + 5.0
        await asyncio.sleep(quiet_s)
        stopping.set()
        await asyncio.gather(*tasks)
    await targets.stop()
    return max(0.0, last_s - killed_s)


async def _done(call: AbstractAsyncContextManager[aiohttp.ClientResponse]) -> None:
    """Make a call that must succeed. Raises ServerError."""
    async with call as answer:
        if answer.status >= 400:
            raise ServerError(f"{answer.method} {answer.url.path} was answered with {answer.status}")


async def _reaches(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    writer.close()
    return True


async def restore(bench: Bench, size: int) -> float:
    """Restart the server and return the seconds from its readiness over HTTP to all instances being in its lists.

    The registry is read before `/ready` answers 200, so this is the time from the process's start.
    """
    await bench.stop()
    began_s = time.monotonic()
    await bench.start()
    found = await bench.instances()
    if found < size:
        raise ServerError(f"{found} of {size} instances were restored")
    return time.monotonic() - began_s


async def beside(bench: Bench, what: str) -> None:
    """Measure lookups and consumes at a fixed rate, and print their latency."""
    (lookups, _), (consumes, _) = await asyncio.gather(
        bench.load(LookUp(BESIDE_SERVICE), BESIDE_CONNECTIONS, rate_per_s=LOOKUPS_PER_S),
        bench.load(Consume(BESIDE_TENANTS), BESIDE_CONNECTIONS, rate_per_s=CONSUMES_PER_S),
    )
    lookup, consume = lookups.tasks, consumes.tasks
    tell(
        f"{what:<48} lookup p50 {lookup.p50_ms:6.2f}  p99 {lookup.p99_ms:6.2f} ms   "
        f"consume p50 {consume.p50_ms:6.2f}  p99 {consume.p99_ms:6.2f} ms   {lookups.errors + consumes.errors} errors"
    )


async def beside_floods(bench: Bench) -> None:
    """Measure lookups and consumes alone, beside a flood of the cheapest call, and beside one of registrations.

    The last one three times: within the burst of its key, at the key's rate, and once the key has all instances that it may.
    """
    await bench.load(CreateAccounts(0, BESIDE_TENANTS), 8, seconds=0.0)
    await bench.load(TopUpBatch(0, BESIDE_TENANTS, 1_000_000_000, BESIDE_TENANTS), 1, seconds=0.0)
    await bench.load(Register(BESIDE_SERVICE, 10), 1, seconds=0.0)
    async with bench.session() as session, session.post("/v1/keys", json={"name": "flood", "role": "writer"}) as answer:
        token = str((await answer.json())["key"])
    tell(
        f"{LOOKUPS_PER_S:g} lookups and {CONSUMES_PER_S:g} consumes a second, beside {FLOODING} connections of another key:"
    )
    await beside(bench, "  alone")
    async with bench.flood(Alive(), token):
        await beside(bench, "  beside GET /health")
    before = await bench.instances()
    async with bench.flood(Register("flood", FLOOD_MAX), token):
        await beside(bench, f"  beside registrations, the first {RATE.burst:,}")
        for count, what in ((RATE.burst * 1.3, f"at {RATE.per_s:,.0f}/s"), (INSTANCES_OF_KEY_MAX, "that are refused")):
            while await bench.instances() < before + count:
                await asyncio.sleep(POLL_S)
            await beside(bench, f"  beside registrations {what}")


async def run(sizes: Sequence[int], strategies: Sequence[str], seconds: float, directory: Path) -> None:
    """Start the server, measure everything, and print it. Raises ServerError, GeneratorError."""
    bench = Bench(directory, seconds)
    await bench.start()
    try:
        for size in sizes:
            await look_up(bench, size, strategies)
        for reported, limit_s in ((True, FAILOVER_REPORTED_S_MAX), (False, FAILOVER_SILENT_S_MAX)):
            took_s = await fail_over(bench, reported=reported)
            how = "failures reported" if reported else "heartbeats only"
            tell(f"killed instance, {how}: last lookup after {took_s:.2f} s   target {limit_s:g} s: "
                 f"{'met' if took_s <= limit_s else 'missed'}")  # fmt: skip
        took_s = await restore(bench, max(sizes))
        tell(f"restart with {sum(sizes):,} instances, stores included: ready with all of them after {took_s:.2f} s")
        await beside_floods(bench)
    finally:
        await bench.stop()


def main() -> int:
    """Run the command line; returns the exit status, which does not depend on the targets."""
    parser = argparse.ArgumentParser(prog="python -m bench.locator_http", description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="instances of a service, with commas")
    parser.add_argument("--strategies", default=",".join(STRATEGIES), help="names with commas")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of one run ({SECONDS:g})")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.sizes.split(",")]
    try:
        with tempfile.TemporaryDirectory(prefix="shieldx-bench-") as made:
            uvloop.run(run(sizes, arguments.strategies.split(","), arguments.seconds, Path(made)))
    except (ServerError, GeneratorError) as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
