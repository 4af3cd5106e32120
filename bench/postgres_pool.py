"""The pool of connections to Postgres beside a bare asyncpg pool: fairness, reuse and cost with many workers on few.

    python -m bench.postgres_pool
    python -m bench.postgres_pool --workers 100 --connections 10 --seconds 5 --rounds 3

All pools are made for the same number of connections, on an embedded Postgres of their own; contestants take turns. Every
worker reads in a closed loop. What one waits for a connection and its answer is its latency; the fewest reads of a worker
over the most tell how fairly connections are handed on.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg
import uvloop

from app.db.pool import Pool
from app.embedded import EmbeddedServers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    Read = Callable[[], Awaitable[Any]]

WAIT_S: Final = 30.0
CONTESTANTS: Final = ("shieldx", "asyncpg, no reset", "asyncpg")


class Result(NamedTuple):
    """One round of one contestant."""

    reads_per_s: float
    p50_ms: float
    p99_ms: float
    longest_ms: float
    fewest_of_most: float
    reuse: float


@asynccontextmanager
async def contestant(name: str, url: str, connections: int) -> AsyncIterator[tuple[Read, Callable[[], int]]]:
    """Open a pool; yield how to read one row with it, and how many connections it has opened."""
    if name == "shieldx":
        pool = await Pool.open(url, connections, timeout_s=WAIT_S, settings={})
        yield lambda: pool.rows(WAIT_S, "SELECT 1", ()), lambda: pool.connected
        pool.terminate()
        return
    opened = 0

    async def count(_connection: object) -> None:
        nonlocal opened
        opened += 1

    async def keep(_connection: object) -> None:
        pass

    options: dict[str, Any] = {} if name == "asyncpg" else {"reset": keep}
    bare = await asyncpg.create_pool(url, min_size=1, max_size=connections, init=count, **options)
    yield lambda: bare.fetch("SELECT 1"), lambda: opened
    bare.terminate()


async def measure(name: str, url: str, workers: int, connections: int, seconds: float) -> Result:
    """Let the workers read for so long."""
    taken_ms: list[float] = []
    counts = [0] * workers
    async with contestant(name, url, connections) as (read, opened):
        ends_s = time.perf_counter() + seconds

        async def work(worker: int) -> None:
            while (started_s := time.perf_counter()) < ends_s:
                await read()
                taken_ms.append((time.perf_counter() - started_s) * 1000)
                counts[worker] += 1

        await asyncio.gather(*map(work, range(workers)))
        reads = len(taken_ms)
        taken_ms.sort()
        return Result(
            reads / seconds, taken_ms[reads // 2], taken_ms[reads * 99 // 100], taken_ms[-1], min(counts) / max(counts),
            1 - opened() / reads,
        )  # fmt: skip


async def compare(root: Path, workers: int, connections: int, seconds: float, rounds: int) -> dict[str, list[Result]]:
    """Return the rounds of all contestants, who take turns on a Postgres in this directory."""

    def ended(server: str, code: int) -> None:
        raise AssertionError(f"{server} ended with {code}")

    found: dict[str, list[Result]] = {name: [] for name in CONTESTANTS}
    async with EmbeddedServers(root, on_exit=ended) as urls:
        for _ in range(rounds):
            for name, results in found.items():
                results.append(await measure(name, urls.admin_database_url, workers, connections, seconds))
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print a table of medians."""
    parser = argparse.ArgumentParser(prog="python -m bench.postgres_pool", description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--connections", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="shieldx-bench-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)  # as root, the servers run under an account of their own
        work = compare(Path(name) / "data", options.workers, options.connections, options.seconds, options.rounds)
        found = uvloop.run(work)
    print(f"{options.workers} workers on {options.connections} connections, medians of {options.rounds} rounds\n")
    print("| pool | reads/s | p50 ms | p99 ms | longest ms | fewest / most of a worker | reuse |")
    print("|---|---|---|---|---|---|---|")
    for name, results in found.items():
        rate, p50, p99, longest, fair, reuse = (median(column) for column in zip(*results, strict=True))
        print(f"| {name} | {rate:.0f} | {p50:.1f} | {p99:.1f} | {longest:.1f} | {fair:.2f} | {reuse:.2%} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
