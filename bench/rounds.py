"""One measured run in a generator process of its own, and interleaved rounds of several contestants."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, NamedTuple

import msgspec

from bench.load import LoadSpec
from bench.servers import REPOSITORY, Servers
from bench.shadow_load import AnySpec
from bench.tally import LoadResult
from bench.usage import Usage, database_usage, machine_time, tree_usage

SAMPLE_SECONDS: Final = 1.0  # seconds between two looks at the server's memory
TICK_SECONDS: Final = 0.01  # seconds; the resolution of the machine's CPU times
LINE_BYTES_MAX: Final = 1 << 20  # bytes; a result is one line of a few kilobytes


class GeneratorError(Exception):
    """The generator ended without a result; its own message is on standard error."""


class Contestant(NamedTuple):
    """Which server gets which workload; `name` is how the report calls it."""

    name: str
    server: str
    workload: AnySpec


class Scenario(NamedTuple):
    """What is measured together. The first contestant is the one that the others are compared with.

    connections  fixed number, or None for those that the command line names
    rate_per_s   offered tasks a second (open loop), or None (closed loop)
    """

    name: str
    about: str
    contestants: tuple[Contestant, ...]
    connections: int | None = None
    rate_per_s: float | None = None


class Pace(NamedTuple):
    """How long and how often."""

    seconds: float
    rounds: int
    bar: bool


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One run: what the generator saw, and what the processes used meanwhile.

    server, databases  CPU seconds during the measured time; server memory is the peak resident size, memory
                       of the databases the proportional set size at the end
    stolen_share       part of all CPU time that the hypervisor gave to other machines
    outside_share      part of all CPU time that processes used which are no part of the run
    memory_samples     the server's resident bytes, once a second
    """

    load: LoadResult
    server: Usage
    databases: dict[str, Usage]
    stolen_share: float
    outside_share: float
    memory_samples: list[int]


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """All rounds of one contestant of one scenario at one number of connections."""

    scenario: str
    contestant: str
    server: str
    connections: int
    rounds: list[Measured]


@contextlib.asynccontextmanager
async def running_generator() -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the generator of load in a process of its own, which is killed if it still runs at the end."""
    generator = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.load",
        cwd=REPOSITORY,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_BYTES_MAX,
    )
    try:
        yield generator
    finally:
        if generator.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                generator.kill()
            await generator.wait()


async def measure(spec: LoadSpec, server_pid: int) -> Measured:
    """Run the generator in its own process and watch the processes under test while it measures.

    faults  GeneratorError; psutil.NoSuchProcess when the server died
    """
    async with running_generator() as generator:
        return await _watch(generator, spec, server_pid)


async def _watch(generator: asyncio.subprocess.Process, spec: LoadSpec, server_pid: int) -> Measured:
    if generator.stdin is None or generator.stdout is None:
        raise GeneratorError("the generator has no pipes")
    generator.stdin.write(msgspec.json.encode(spec))
    generator.stdin.close()
    await _expect(generator.stdout, b"measuring")
    server_from, databases_from, machine_from = tree_usage(server_pid), database_usage(), machine_time()
    samples = [server_from.memory_bytes]
    sampling = asyncio.create_task(_sample(server_pid, samples))
    try:
        await _expect(generator.stdout, b"measured")
    finally:
        sampling.cancel()
    server, databases, machine = tree_usage(server_pid), database_usage(), machine_time()
    samples.append(server.memory_bytes)
    line = await generator.stdout.readline()
    if await generator.wait() != 0 or not line:
        raise GeneratorError(f"the generator ended with {generator.returncode} in {spec.label}")
    load = msgspec.json.decode(line, type=LoadResult)
    server_used = Usage(server.cpu_seconds - server_from.cpu_seconds, max(samples))
    databases_used = {
        name: Usage(one.cpu_seconds - databases_from[name].cpu_seconds, one.memory_bytes)
        for name, one in databases.items()
        if name in databases_from
    }
    ours = load.generator_cpu_seconds + server_used.cpu_seconds
    ours += sum(one.cpu_seconds for one in databases_used.values())
    total = max(machine.total - machine_from.total, TICK_SECONDS)
    return Measured(
        load=load,
        server=server_used,
        databases=databases_used,
        stolen_share=(machine.stolen - machine_from.stolen) / total,
        outside_share=max(0.0, machine.busy - machine_from.busy - ours) / total,
        memory_samples=samples,
    )


async def _expect(lines: asyncio.StreamReader, event: bytes) -> None:
    line = await lines.readline()
    if event not in line:
        raise GeneratorError(f"the generator ended before it was {event.decode()}")


async def _sample(pid: int, samples: list[int]) -> None:
    while True:
        await asyncio.sleep(SAMPLE_SECONDS)
        samples.append(tree_usage(pid).memory_bytes)


async def interleave(
    scenario: Scenario,
    servers: Servers,
    connections: Sequence[int],
    pace: Pace,
    tell: Callable[[str], None],
) -> list[Series]:
    """Measure every contestant once per round: A B A B A B, so that what drifts on the machine hits all.

    connections  one or more numbers for the scenarios that leave them open
    tell         is given one line per run
    faults       those of `measure`
    """
    found = []
    for count in [scenario.connections] if scenario.connections else connections:
        rounds: list[list[Measured]] = [[] for _ in scenario.contestants]
        for number in range(pace.rounds):
            for results, contestant in zip(rounds, scenario.contestants, strict=True):
                label = f"{scenario.name}: {contestant.name} {count}c {number + 1}/{pace.rounds}"
                spec = LoadSpec(
                    label=label,
                    origin=servers.origin(contestant.server),
                    workload=contestant.workload,
                    connections=count,
                    seconds=pace.seconds,
                    rate_per_s=scenario.rate_per_s,
                    seed=number + 1,
                    bar=pace.bar,
                )
                results.append(await measure(spec, servers.processes[contestant.server].pid))
                load = results[-1].load
                figures = f"{load.operations_per_s:,.0f} ops/s, p99 {load.tasks.p99_ms:.1f} ms"
                tell(f"{label}: {figures}, {load.errors} errors")
        found += [
            Series(
                scenario=scenario.name,
                contestant=contestant.name,
                server=contestant.server,
                connections=count,
                rounds=results,
            )
            for results, contestant in zip(rounds, scenario.contestants, strict=True)
        ]
    return found
