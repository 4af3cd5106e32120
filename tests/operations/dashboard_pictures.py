"""`make dashboard-pictures`: docs/dashboards/*.png, from a real Prometheus that watches two real replicas under load.

The load is mixed and open-loop; in the middle the replica that leads is killed and starts again, so that the pictures show
what a takeover looks like. Time runs 15 times as fast for Prometheus and its rules, as in the tests: a scrape a second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import aiohttp

from bench.load import LoadSpec, run_load
from bench.workloads import CreateAccounts, Mixed, Origin, TopUpBatch
from grafana.answers import Prometheus, Window
from grafana.draw import POINTS, draw_all
from tests.credits.ledger_client import Client
from tests.credits.ledger_house import LedgerHouse
from tests.metrics.traffic import use_experiments, use_keys, use_locator, use_money, use_webhooks
from tests.operations.live_stack import Pager, running
from tests.operations.shipped import alertmanager_at, prometheus_at, write_alertmanager, write_prometheus
from tests.server import REPOSITORY, ROOT_KEY, ShieldxServer, free_port
from tests.stores import running_postgres, running_redis, store_directory

PICTURES: Final = REPOSITORY / "docs" / "dashboards"
LOAD_S: Final = 180.0
KILLED_AT: Final = 0.5  # part of the load
AWAY: Final = 0.1  # part of the load; 18 s are longer than it takes the other replica to lead
RATE_PER_S: Final = 100.0  # tasks, of each of the two generators: what two cores take beside Prometheus and the stores
PAUSE_S: Final = 0.03  # between two rounds of what is not credits: the load stays what it is
TENANTS: Final = 200
VALUES: Final = {"namespace": ".*", "job": "credits|shadow", "instance": ".*", "__rate_interval": "6s"}


@contextlib.contextmanager
def watched(replicas: list[ShieldxServer], directory: Path) -> Iterator[str]:
    """Prometheus and Alertmanager with the shipped configuration on these replicas; yields host:port of Prometheus."""
    alerting, watching = directory / "alertmanager", directory / "prometheus"
    alertmanager, prometheus = (f"127.0.0.1:{free_port()}" for _ in range(2))
    credits_ = [f"127.0.0.1:{replica.port}" for replica in replicas]
    addresses = {"credits": credits_, "shadow": [], "prometheus": [prometheus], "alertmanager": [alertmanager]}
    pager = Pager()
    write_alertmanager(alerting, alertmanager_at(pager.url), "alert-token-of-the-pictures")
    write_prometheus(watching, prometheus_at(addresses, alertmanager), ROOT_KEY)
    with contextlib.ExitStack() as stack:
        stack.callback(pager.close)
        arguments = ("--config.file=alertmanager.yml", "--storage.path=data", "--cluster.listen-address=")
        stack.enter_context(running("prometheus-alertmanager", alertmanager, alerting, *arguments))
        arguments = ("--config.file=prometheus.yml", "--storage.tsdb.path=data")
        stack.enter_context(running("prometheus", prometheus, watching, *arguments))
        yield prometheus


async def load(origin: Origin, seconds: float) -> None:
    """Mixed credit operations at a fixed rate."""
    await run_load(
        LoadSpec(
            label="pictures", origin=origin, workload=Mixed(TENANTS), connections=32, seconds=seconds, rate_per_s=RATE_PER_S
        )
    )


async def try_variants(client: Client) -> None:
    """Two variants, of which the new one is better: units are assigned, and what became of them is reported."""
    variants = [{"name": "old", "control": True}, {"name": "new"}]
    await client.post("/v1/experiments", {"name": "checkout", "variants": variants, "allocation": "fixed"})
    for number in itertools.count():
        unit = f"unit-{number}"
        given = await client.done("/v1/experiments/checkout/assign", {"unit_id": unit})
        outcome = {"event_id": unit, "unit_id": unit, "success": number % (2 if given["variant"] == "new" else 3) == 0}
        await client.post("/v1/experiments/checkout/outcomes", outcome)
        await asyncio.sleep(PAUSE_S)


async def try_rules(client: Client) -> None:
    """A rule and its challenger."""
    versions = [{"name": f"v{limit}", "expression": f"input.amount > {limit}"} for limit in (900, 1000)]
    rule = {"name": "limits", "versions": versions, "champion": "v1000", "challenger": "v900"}
    await client.post("/v1/rules", rule)
    for number in itertools.count():
        await client.post("/v1/rules/limits/evaluate", {"input": {"amount": 800 + number % 300}})
        await asyncio.sleep(PAUSE_S)


async def call_services(client: Client) -> None:
    """Three instances of a service, looked up by every strategy; one call in fifty fails."""
    for name in "abc":
        place = {"host": f"10.0.0.{ord(name)}", "port": 8080, "zone": "z1", "ttl_seconds": 600}
        await client.call("PUT", f"/v1/services/payments/instances/payments-{name}", place)
    strategies = ("p2c", "p2c", "round_robin", "least_connections", "response_time", "weighted_random")
    for number in itertools.count():
        lent = (await client.get(f"/v1/services/payments/lookup?strategy={strategies[number % len(strategies)]}")).body
        report = {"lease_id": lent["lease_id"], "ok": number % 50 > 0, "latency_ms": 5.0 + number % 7}
        await client.post("/v1/services/payments/report", report)
        await asyncio.sleep(PAUSE_S)


async def use_the_rest(client: Client) -> None:
    """A little of everything else, again and again."""
    await use_experiments(client)
    await use_locator(client)
    while True:
        await use_keys(client, await use_money(client))
        await use_webhooks(client)


async def persist(url: str, work: Callable[[Client], Awaitable[None]], until_s: float) -> None:
    """Go on with some work until a time; a takeover may interrupt it, and it begins anew then."""
    while time.monotonic() < until_s:
        with contextlib.suppress(AssertionError, KeyError, TypeError, aiohttp.ClientError, TimeoutError):
            async with aiohttp.ClientSession() as session, asyncio.timeout(until_s - time.monotonic()):
                await work(Client(session, url))


async def fault(replica: ShieldxServer, seconds: float) -> None:
    """Kill a replica in the middle of it all, and start it again. When it leads again is for the pictures to tell."""
    await asyncio.sleep(KILLED_AT * seconds)
    replica.kill()
    await asyncio.sleep(AWAY * seconds)
    replica.launch()


async def play(replicas: list[ShieldxServer], seconds: float) -> None:
    """Make accounts, then play load and fault side by side."""
    origins = [Origin("127.0.0.1", one.port, ROOT_KEY, f"load-{one.name}") for one in replicas]
    for workload in (CreateAccounts(0, TENANTS), TopUpBatch(0, TENANTS, 10**9, 100)):
        # Each with keys of its own: a key that came before with another body is refused.
        origin = Origin("127.0.0.1", replicas[0].port, ROOT_KEY, type(workload).__name__)
        done = await run_load(LoadSpec(label="accounts", origin=origin, workload=workload, connections=8, seconds=0))
        assert done.failed_operations == 0, done.statuses
    until_s = time.monotonic() + seconds
    await asyncio.gather(
        load(origins[0], seconds),
        load(origins[1], seconds),
        fault(replicas[0], seconds),
        *(persist(replicas[1].url, work, until_s) for work in (try_variants, try_rules, call_services, use_the_rest)),
    )


def main() -> int:
    """Start everything, play, draw, and name the files."""
    parser = argparse.ArgumentParser(description="Draw the dashboards of two replicas under load.")
    parser.add_argument("--seconds", type=float, default=LOAD_S, help=f"how long the load lasts ({LOAD_S:.0f})")
    seconds: float = parser.parse_args().seconds
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(running_redis())
        postgres = stack.enter_context(running_postgres(killed=False))
        directory = stack.enter_context(store_directory("pictures"))
        house = LedgerHouse(redis, postgres, directory, stack)
        ledger = asyncio.run(house.make_ledger())
        settings = {"backup_dir": str(directory / "backups"), "webhook_allow_http": "true", "webhook_ports": "0"}
        settings |= {"webhook_allow_networks": "127.0.0.0/8", "check_networks": "127.0.0.0/8"}
        replicas = [house.server_on(ledger, name, shards=2, **settings) for name in ("replica-a", "replica-b")]
        for command in (("migrate", "up"), ("backup", "create")):
            replicas[0].run_command(*command).check_returncode()
        for replica in replicas:
            asyncio.run(replica.start())
        prometheus = stack.enter_context(watched(replicas, directory))
        print(f"two replicas run, load for {seconds:.0f} s", flush=True)
        start_s = time.time()
        asyncio.run(play(replicas, seconds))
        end_s = time.time()
        print(f"drawing {end_s - start_s:.0f} s", flush=True)
        window = Window(start_s, end_s, (end_s - start_s) / POINTS, VALUES | {"__range": f"{seconds:.0f}s"})
        for path in draw_all(Prometheus(prometheus), window, PICTURES):
            print(f"{path.relative_to(REPOSITORY)} {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
