"""Picking in process: microseconds a pick and a report by strategy and size, cost of changes, memory of instances.

    python -m bench.locator_pick
    python -m bench.locator_pick --sizes 1000 --strategies p2c,response_time --rounds 50

Calls in flight are kept at a constant number, so that strategies which look at them have something to see. A round is a
few hundred picks, then as many reports; the median round is the figure, the fastest shows what the machine's other work
adds. Times are of one thread's CPU clock with `--cpu`, else of the wall clock.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import tracemalloc
from collections import deque
from statistics import median
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

from app.locator.balancing import STRATEGIES
from app.locator.directory import Directory
from app.locator.instance import Instance, Snapshot
from app.locator.pick import Balancer
from app.locator.record import SUSPECT_SHARE, Registered, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from app.locator.balancing import Strategy

    Clock = Callable[[], float]

SIZES: Final = (10, 1_000, 10_000)
ROUNDS: Final = 200
ROUND_PICKS: Final = 250
IN_FLIGHT: Final = 256
PICK_US_MAX: Final = 3.0  # the target, with 1,000 instances
MEMORY_MB_MAX: Final = 2.0  # the target, of 1,000 instances with tags and metadata
MEMORY_INSTANCES: Final = 1_000
CHANGES: Final = 100
USES: Final = 300


class Cost(NamedTuple):
    """Microseconds of one pick and one report: median and fastest round."""

    pick_us: float
    pick_least_us: float
    report_us: float
    report_least_us: float


def instance(number: int) -> Instance:
    """Return an instance as services register them: a zone, four tags, six entries of metadata."""
    host = f"10.{number // 65_536 % 256}.{number // 256 % 256}.{number % 256}"
    return Instance.of(
        "checkout", f"checkout-7d9f{number:06x}", host, 8080, generation=f"{number:032x}",
        zone=f"zone-{number % 3}",
        tags=(f"v{number % 4}.{number % 7}", "http", "canary" if number % 20 == 0 else "stable", f"shard-{number % 16}"),
        metadata={
            "version": f"1.{number % 9}.{number % 30}", "region": "eu-central-1", "node": f"node-{number // 8:05}",
            "commit": f"{number * 2654435761 % 2**32:08x}", "started_by": "deployer", "runtime": "python3.11",
        },
    )  # fmt: skip


def measure(strategy: Strategy, snapshot: Snapshot, rounds: int, clock: Clock) -> Cost:
    """Return what a pick and its report cost with this many instances."""
    balancer = Balancer("bench")
    keys = [f"user-{number}" for number in range(ROUND_PICKS)]
    flying: deque[str] = deque()

    def pick(key: str, now_s: float) -> None:
        one = balancer.pick(snapshot, strategy, now_s=now_s, key=key)
        if one is None:
            raise AssertionError("an instance that is up was not picked")
        flying.append(one.lease_id)

    for number in range(IN_FLIGHT):
        pick(keys[number % ROUND_PICKS], 0.0)
    picks_us, reports_us = [], []
    for number in range(rounds):
        now_s = number * 0.01
        started = clock()
        for key in keys:
            pick(key, now_s)
        halfway = clock()
        for _ in keys:
            balancer.report("checkout", flying.popleft(), ok=True, now_s=now_s, latency_ms=5.0, reporter="bench")
        ended = clock()
        picks_us.append((halfway - started) / ROUND_PICKS * 1e6)
        reports_us.append((ended - halfway) / ROUND_PICKS * 1e6)
    return Cost(median(picks_us), min(picks_us), median(reports_us), min(reports_us))


def change_costs(snapshot: Snapshot, clock: Clock) -> dict[str, float]:
    """Return milliseconds of what a changing service costs: taking a snapshot, one change, compiling, a ring."""
    costs = {}
    balancer = Balancer("bench")
    started = clock()
    balancer.use(snapshot, 0.0)
    costs["first snapshot"] = clock() - started
    started = clock()
    balancer.pick(snapshot, now_s=0.0)
    costs["first pick"] = clock() - started
    started = clock()
    balancer.pick(snapshot, "consistent_hash", now_s=0.0, key="k")
    costs["ring"] = clock() - started
    started = clock()
    latest = snapshot
    for number in range(CHANGES):
        latest = latest.evolve([instance(10**7 + number)], revision=latest.revision + 1)
        balancer.use(latest, 0.001 * number)
    costs["a change"] = (clock() - started) / CHANGES
    started = clock()
    balancer.pick(latest, now_s=1.0)
    costs["compile after changes"] = clock() - started
    return {name: seconds * 1000 for name, seconds in costs.items()}


def _changes(count: int) -> list[bytes]:
    """Return registrations as the registry's script tells of them, one by one."""
    texts = []
    for number in range(count):
        one = instance(number)
        facts = one.facts
        body = encode(Registered(
            facts.host, facts.port, one.weight, one.zone, one.tags, facts.metadata, 60.0, 60.0 * SUSPECT_SHARE, None,
            "key-1", 1_700_000_000_000 + number,
        )).decode()  # fmt: skip
        change = [number + 1, "put", f"checkout/{one.id}", "up", "none", "none", one.generation, body]
        texts.append(orjson.dumps([change]))
    return texts


def memory_mb(count: int) -> dict[str, float]:
    """Return megabytes of so many instances in a replica: registered, then with what each kind of use adds."""
    texts = _changes(count)
    gc.collect()
    tracemalloc.start()
    found = {}
    directory, balancer = Directory(), Balancer("bench")
    for number, text in enumerate(texts):
        directory.apply(orjson.loads(text), float(number))
    roster = directory.services["checkout"]
    snapshot, now_s = roster.snapshot, float(count)
    gc.collect()
    found["registered"] = tracemalloc.get_traced_memory()[0]

    for id_, record in roster.records.items():
        for beat in range(3):
            directory.beat(roster, id_, record, now_s + 10.0 * beat)
        directory.take_renewed()
    found["and heard three times"] = tracemalloc.get_traced_memory()[0]

    def use(times: int, *, ok: bool) -> None:
        for _ in range(times * count):
            one = balancer.pick(snapshot, now_s=now_s)
            if one is not None:
                balancer.report("checkout", one.lease_id, ok=ok, now_s=now_s, latency_ms=5.0, reporter="bench")

    use(USES, ok=True)  # counts are no longer the small numbers of which Python keeps one object each
    found[f"and looked up and reported {USES} times each"] = tracemalloc.get_traced_memory()[0]
    balancer.pick(snapshot, "consistent_hash", now_s=now_s, key="k")
    found["and a ring"] = tracemalloc.get_traced_memory()[0]
    use(4, ok=False)
    found["and failed four times each: every one has a breaker"] = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return {name: size_bytes / 1e6 for name, size_bytes in found.items()}


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print tables. Returns 0; 2 for a wrong command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.locator_pick", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="instances, comma-separated")
    parser.add_argument("--strategies", default=",".join(STRATEGIES), help="comma-separated")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds of {ROUND_PICKS} picks")
    parser.add_argument("--cpu", action="store_true", help="count CPU time of the thread, not wall time")
    options = parser.parse_args(words)
    strategies = [one for one in STRATEGIES if one in options.strategies.split(",")]
    sizes = [int(size) for size in options.sizes.split(",")]
    clock: Clock = time.thread_time if options.cpu else time.perf_counter
    print(f"Python {sys.version.split()[0]}, {IN_FLIGHT} calls in flight, {'CPU' if options.cpu else 'wall'} time\n")
    print("| instances | strategy | pick us (least) | report us (least) |\n|---|---|---|---|")
    for size in sizes:
        snapshot = Snapshot.of("checkout", map(instance, range(size)), 1)
        for strategy in strategies:
            cost = measure(strategy, snapshot, options.rounds, clock)
            print(f"| {size} | {strategy} | {cost.pick_us:.2f} ({cost.pick_least_us:.2f}) "
                  f"| {cost.report_us:.2f} ({cost.report_least_us:.2f}) |", flush=True)  # fmt: skip
    print("\n| instances | " + " | ".join(change_costs(Snapshot.of("checkout", [instance(0)], 1), clock)) + " |")
    print("|---|---|---|---|---|---|")
    for size in sizes:
        snapshot = Snapshot.of("checkout", map(instance, range(size)), 1)
        print(f"| {size} | " + " | ".join(f"{ms:.3f} ms" for ms in change_costs(snapshot, clock).values()) + " |")
    print(f"\nMemory of {MEMORY_INSTANCES:,} instances (target {MEMORY_MB_MAX:g} MB; a pick with them: {PICK_US_MAX:g} us):")
    for name, size_mb in memory_mb(MEMORY_INSTANCES).items():
        print(f"  {name}: {size_mb:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
