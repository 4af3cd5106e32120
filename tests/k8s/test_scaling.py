"""Replicas come and go under load the way the autoscaler and a rollout make them: no request fails, no operation is lost."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import aiohttp
import asyncpg
import orjson
import pytest

from app.backup.databases import database_of
from tests.credits.ledger_client import AUTHORIZED, Client, fresh
from tests.credits.ledger_house import Ledger, LedgerHouse
from tests.guide import block
from tests.k8s.conftest import Manifests, of_kind, pod_spec
from tests.k8s.test_manifests import named
from tests.server import ShieldxServer

ENDPOINTS_DELAY_S: Final = 1.0  # from the end of a pod being wished until no new connection goes there
PACE_S: Final = 0.1  # between two requests of a caller
CALLERS: Final = 3  # of each kind
SHARDS: Final = 2
START_TIMEOUT_S: Final = 120.0  # several start at once, beside the load
OTHER_SESSIONS: Final = 6  # of a replica, as docs/deployment.md counts them
PARTITIONS_MAX: Final = 10  # of the chain: this quarter and the next two; taking over an empty shard makes no more
BALANCE: Final = 10**6
CALM_REQUESTS: Final = 60  # that must have passed before the next thing happens


class Balancer:
    """The pods that a Service sends new connections to: those that said they are ready and are not about to end."""

    def __init__(self) -> None:
        """No pod yet."""
        self.endpoints: list[ShieldxServer] = []
        self._turns = itertools.count()

    def next(self) -> ShieldxServer:
        """The next one in turn."""
        assert self.endpoints, "no replica is ready"
        return self.endpoints[next(self._turns) % len(self.endpoints)]


class Load:
    """Callers that spend one credit after the other, and what became of it.

    One kind asks the balancer for every request. The other keeps its connection, as proxies do, and asks again only when the
    server has ended it with an answer that said so: a connection that is closed between two requests fails the next one.
    """

    def __init__(self, balancer: Balancer, tenant: str) -> None:
        """`tenant` has the credits."""
        self._balancer = balancer
        self._tenant = tenant
        self.spent = 0
        self.failed: list[str] = []
        self.waits_s: list[float] = []
        self.ending = asyncio.Event()

    async def run(self) -> None:
        """Spend until `ending` is set."""
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(self._wander())
                group.create_task(self._stay())

    async def _wander(self) -> None:
        async with aiohttp.ClientSession() as session:
            while not self.ending.is_set():
                await self._spend(session, self._balancer.next())
                await asyncio.sleep(PACE_S)

    async def _stay(self) -> None:
        while not self.ending.is_set():
            pod, stays = self._balancer.next(), True
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
                while stays and not self.ending.is_set():
                    stays = await self._spend(session, pod)
                    await asyncio.sleep(PACE_S)

    async def _spend(self, session: aiohttp.ClientSession, pod: ShieldxServer) -> bool:
        """Spend one credit once, without a second try; return whether the connection stays."""
        started_s = time.monotonic()
        try:
            async with session.post(
                f"{pod.url}/v1/credits/consume", data=orjson.dumps({"tenant_id": self._tenant, "amount": 1}),
                headers={**AUTHORIZED, "Idempotency-Key": fresh("scaling"), "Content-Type": "application/json"},
            ) as answer:  # fmt: skip
                body = await answer.read()
        except (aiohttp.ClientError, ConnectionError) as error:
            self.failed.append(f"{pod.name}: {type(error).__name__}: {error}")
            return False
        self.waits_s.append(time.monotonic() - started_s)
        if answer.status == 200:
            self.spent += 1
        else:
            self.failed.append(f"{pod.name}: {answer.status} {body!r}")
        return answer.headers.get("Connection") != "close"

    async def calm(self) -> None:
        """Wait until some more requests have passed."""
        until = self.spent + CALM_REQUESTS
        while self.spent < until and len(self.failed) < CALM_REQUESTS:
            await asyncio.sleep(PACE_S)


class Shipped:
    """The times of the production manifests, in seconds."""

    def __init__(self, manifests: Manifests) -> None:
        """Read them."""
        objects = manifests("prod")
        pod = pod_spec(named(objects, "Deployment", "shieldx-credits"))
        self.pre_stop_s: Final = int(pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"])
        self.grace_s: Final = int(pod["terminationGracePeriodSeconds"])
        self.settings: Final[dict[str, str]] = next(
            one["data"] for one in of_kind(objects, "ConfigMap") if one["metadata"]["name"].startswith("shieldx-config")
        )

    def setting(self, name: str) -> str:
        """Return a setting as the manifests give it."""
        return self.settings[f"SHIELDX_{name.upper()}"]


class Deployment:
    """Replicas on one ledger."""

    def __init__(self, house: LedgerHouse, ledger: Ledger, shipped: Shipped, balancer: Balancer) -> None:
        """No replica yet."""
        self._house = house
        self._ledger = ledger
        self._shipped = shipped
        self._balancer = balancer
        self._numbers = itertools.count()

    async def scale_up(self) -> ShieldxServer:
        """Start a replica; it gets calls once it is ready."""
        names = ("postgres_pool_size", "postgres_pool_max", "shutdown_delay_seconds", "shutdown_grace_seconds")
        pod = self._house.server_on(
            self._ledger, f"scaled-{next(self._numbers)}", shards=SHARDS, services="credits,locator",
            **{name: self._shipped.setting(name) for name in names},
        )  # fmt: skip
        pod.launch()
        await pod.wait_ready(START_TIMEOUT_S)
        self._balancer.endpoints.append(pod)
        return pod

    async def scale_down(self, pod: ShieldxServer) -> float:
        """End a replica as kubelet does: endpoints change a moment later, preStop, SIGTERM. Return the seconds of the end."""
        started_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._forget(pod))
            group.create_task(asyncio.sleep(self._shipped.pre_stop_s))
        ended = asyncio.create_task(asyncio.to_thread(pod.stop))
        await until_leaving(pod)
        assert await ended == 0, pod.log_tail
        return time.monotonic() - started_s

    async def _forget(self, pod: ShieldxServer) -> None:
        await asyncio.sleep(ENDPOINTS_DELAY_S)
        self._balancer.endpoints.remove(pod)


async def until_leaving(pod: ShieldxServer) -> None:
    """Wait until a replica that was told to end says so."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while (found := await pod.readiness())[0] != 503:
        assert pod.alive, f"{pod.name} ended without a word:\n{pod.log_tail}"
        assert time.monotonic() < deadline_s, pod.log_tail
        await asyncio.sleep(PACE_S)
    assert found[1]["waiting_for"] == ["process"], found


async def until_gone(pod: ShieldxServer) -> None:
    """Wait until a replica has ended."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while pod.alive:
        assert time.monotonic() < deadline_s, pod.log_tail
        await asyncio.sleep(PACE_S)


@pytest.fixture
async def owner(house: LedgerHouse) -> AsyncIterator[tuple[Ledger, asyncpg.Connection[Any]]]:
    """A ledger whose database was made and migrated as the guide says, for the role that serves; and a superuser there."""
    ledger = (await house.make_ledger())._replace(database_url=await house.postgres.make_own_database())
    name = database_of(ledger.database_url)
    async with contextlib.AsyncExitStack() as stack:
        superuser = await asyncpg.connect(ledger.database_url)
        stack.push_async_callback(superuser.close)
        for statement in block("roles").split(";\n"):
            if statement.strip() and not statement.startswith("CREATE DATABASE"):
                with contextlib.suppress(asyncpg.DuplicateObjectError):
                    await superuser.execute(statement)
        await superuser.execute(f"ALTER DATABASE {name} OWNER TO shieldx_owner")
        served = ledger._replace(database_url=ledger.database_url.replace("postgres@", "shieldx_server@"))
        migrating = house.server_on(
            served, "migrating", shards=SHARDS,
            migrate_database_url=ledger.database_url.replace("postgres@", "shieldx_owner@"),
        )  # fmt: skip
        run = await asyncio.to_thread(migrating.run_command, "migrate", "up", "--no-backup")
        assert run.returncode == 0, run.stdout + run.stderr
        yield served, superuser


async def test_replicas_come_and_go_without_a_failed_request(
    house: LedgerHouse, session: aiohttp.ClientSession, manifests: Manifests, owner: tuple[Ledger, asyncpg.Connection[Any]]
) -> None:
    ledger, connection = owner
    shipped, balancer = Shipped(manifests), Balancer()
    deployment = Deployment(house, ledger, shipped, balancer)
    first = [await deployment.scale_up() for _ in range(2)]
    tenant = await Client(session, first[0].url).tenant(BALANCE)
    load = Load(balancer, tenant)
    running = asyncio.create_task(load.run())
    await load.calm()

    later = await asyncio.gather(deployment.scale_up(), deployment.scale_up())
    await load.calm()
    writers = {row[0] for row in await connection.fetch("SELECT writer FROM ledger_shards")}
    sessions = await connection.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'shieldx'"
    )
    seconds = await asyncio.gather(*(deployment.scale_down(pod) for pod in first))
    await load.calm()
    load.ending.set()
    await running

    partitions = await connection.fetchval("SELECT count(*) FROM pg_inherits WHERE inhparent = 'audit_entries'::regclass")
    assert load.failed == []
    assert writers & {pod.name for pod in first}, "the writers of the ledger should have been among those that went"
    assert max(seconds) < shipped.grace_s
    assert partitions < PARTITIONS_MAX
    assert sessions <= len((*first, *later)) * (int(shipped.setting("postgres_pool_max")) + 2 * SHARDS + OTHER_SESSIONS)
    assert (await Client(session, later[0].url).account(tenant))["balance"] == BALANCE - load.spent
    assert await connection.fetchval("SELECT count(*) FROM audit_entries WHERE type = 'consume'") == load.spent
    assert later[0].run_command("audit", "verify", database_url=ledger.database_url).returncode == 0

    hurried, last = later
    assert hurried.process is not None
    hurried.process.terminate()
    await until_leaving(hurried)
    hurried.process.terminate()
    await until_gone(hurried)
    assert hurried.exit_code == 0, "a second signal ends the wait, in order"
    last.kill()
