"""`make dashboard-pictures`: docs/dashboards/*.png, from a real Prometheus that watches two real replicas under load.

The load is mixed and open-loop; in the second half one replica is killed and starts again, so that the pictures show what
a takeover looks like. Time runs 30 times as fast for Prometheus and its rules, as in the tests: a scrape every half second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator
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
from tests.stores import NOT_KILLED, running_postgres, running_redis, store_directory

PICTURES: Final = REPOSITORY / "docs" / "dashboards"
LOAD_S: Final = 180.0
KILLED_AT: Final = 0.5  # part of the load
AWAY: Final = 0.1  # part of the load; 18 s are longer than it takes the other replica to lead
RATE_PER_S: Final = 100.0  # tasks, of each of the two generators: what two cores take beside Prometheus and the stores
TENANTS: Final = 200
VALUES: Final = {"namespace": ".*", "job": ".*", "instance": ".*", "__rate_interval": "6s"}


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


async def everything(url: str, until_s: float) -> None:
    """Traffic of every kind that leaves a trace in the metrics, again and again. A takeover may interrupt a round of it."""
    async with aiohttp.ClientSession() as session:
        client = Client(session, url)
        while time.monotonic() < until_s:
            with contextlib.suppress(AssertionError, KeyError, aiohttp.ClientError):
                tenant = await use_money(client)
                await use_keys(client, tenant)
                await use_locator(client)
                await outcomes(client)
                await use_webhooks(client)


async def outcomes(client: Client) -> None:
    """Test two variants, of which one is better, and report what became of some units."""
    tested, rule = await use_experiments(client)
    for number in range(40):
        variant = "ab"[number % 2]
        outcome = {
            "event_id": f"{tested}-{number}",
            "variant": variant,
            "success": number % (3 if variant == "b" else 5) == 0,
        }
        await client.post(f"/v1/experiments/{tested}/outcomes", outcome)
        await client.post(f"/v1/rules/{rule}/evaluate", {"input": {"a": number % 4}})


async def fault(replica: ShieldxServer, seconds: float) -> None:
    """Kill a replica in the middle of it all, and start it again. When it is back is for the pictures to tell."""
    await asyncio.sleep(KILLED_AT * seconds)
    replica.kill()
    await asyncio.sleep(AWAY * seconds)
    replica.launch()


async def play(replicas: list[ShieldxServer], seconds: float) -> None:
    """Make accounts, then play load and fault side by side."""
    origins = [Origin("127.0.0.1", one.port, ROOT_KEY, f"pictures-{one.name}") for one in replicas]
    for workload in (CreateAccounts(0, TENANTS), TopUpBatch(0, TENANTS, 10**9, 100)):
        await run_load(LoadSpec(label="accounts", origin=origins[0], workload=workload, connections=8, seconds=0))
    until_s = time.monotonic() + seconds
    await asyncio.gather(
        load(origins[0], seconds),
        load(origins[1], seconds),
        everything(replicas[0].url, until_s),
        fault(replicas[1], seconds),
    )


def main() -> int:
    """Start everything, play, draw, and name the files."""
    parser = argparse.ArgumentParser(description="Draw the dashboards of two replicas under load.")
    parser.add_argument("--seconds", type=float, default=LOAD_S, help=f"how long the load lasts ({LOAD_S:.0f})")
    seconds: float = parser.parse_args().seconds
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(running_redis())
        postgres = stack.enter_context(running_postgres(NOT_KILLED))
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
        start_s = time.time()
        asyncio.run(play(replicas, seconds))
        end_s = time.time()
        window = Window(start_s, end_s, (end_s - start_s) / POINTS, VALUES | {"__range": f"{seconds:.0f}s"})
        for path in draw_all(Prometheus(prometheus), window, PICTURES):
            print(f"{path.relative_to(REPOSITORY)} {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
