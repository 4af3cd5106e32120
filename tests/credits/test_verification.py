"""The daily verification: by one replica, when it is due, and what it finds is known everywhere."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import asyncpg
import pytest

from app.audit.checkpoint import Checkpoint
from app.audit.memory import remembered_trees
from app.audit.note import Verifier
from app.audit.shard import Shard
from app.clock import ms_of
from app.credits.verification import CLAIM_MS, RETRY_MS, DailyVerification, Subject
from app.db.postgres import open_pool
from app.db.statements import Statements
from app.db.topology import make_topology
from app.main import audit_key
from app.settings import Settings
from tests.credits.ledger_client import Client
from tests.credits.ledger_house import Ledger
from tests.server import ROOT_KEY

DAY_S = 86_400
DEADLINE_S = 90.0


class Scene(NamedTuple):
    """A ledger that a server writes, and verifications at times of our own."""

    session: asyncpg.Connection[Any]
    statements: Statements
    shard: Shard
    subject: Subject
    founded_ms: int
    now_ms: list[int]
    redis_url: str
    trees: list[Checkpoint]

    def replica(self, name: str) -> DailyVerification:
        return DailyVerification(
            self.statements, [self.shard], self.subject, replica=name, interval_s=DAY_S, memory=self.memory,
            clock=lambda: self.now_ms[0],
        )  # fmt: skip

    async def memory(self) -> tuple[Checkpoint, ...]:
        """Return what Redis remembers of the log, and what else was put into `trees`."""
        topology = make_topology(self.redis_url)
        try:
            return (*await remembered_trees(topology, [self.shard.origin]), *self.trees)
        finally:
            await topology.close()

    async def rows(self) -> list[asyncpg.Record]:
        return await self.session.fetch("SELECT * FROM ledger_verifications ORDER BY started_at")

    def pass_ms(self, milliseconds: int) -> None:
        self.now_ms[0] += milliseconds


@pytest.fixture
async def scene(client: Client, ledger: Ledger) -> AsyncIterator[Scene]:
    # The last entry is a reserve, because a test changes it: of a consume the server might add up what it says meanwhile.
    await client.reserve(await client.tenant(10), 1)
    session = await asyncpg.connect(ledger.database_url)
    pool = await open_pool(ledger.database_url, 4)
    await session.execute("DELETE FROM ledger_verifications")
    founded_ms = ms_of(await session.fetchval("SELECT created_at FROM ledger"))
    keys = [Verifier.from_vkey(row["key"]) for row in (await client.get("/v1/audit/keys")).body["data"]]
    head_seq = await session.fetchval("SELECT head_seq FROM ledger_shards")
    shard = Shard(0, keys[0].name)
    shard.learn(1, "", head_seq)
    shard.leading = True
    subject = Subject(ledger.database_url, audit_key(Settings(), ROOT_KEY), {0: keys})
    yield Scene(session, Statements(pool), shard, subject, founded_ms, [founded_ms], ledger.redis_url, [])
    await session.execute("DELETE FROM ledger_verifications")
    await session.close()
    pool.terminate()


async def recorded(scene: Scene) -> dict[str, Any]:
    """Wait until the server has recorded what is pending, and return what the last verification's entry says."""
    deadline_s = time.monotonic() + DEADLINE_S
    while await scene.session.fetchval("SELECT count(*) FROM pending_entries WHERE recorded_at IS NULL"):
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.05)
    entry = await scene.session.fetchval(
        "SELECT entry FROM audit_entries WHERE type = 'audit.verify' ORDER BY seq DESC LIMIT 1"
    )
    return dict(json.loads(entry.partition(b"\n")[2])["details"])


async def test_one_replica_verifies_when_a_day_has_passed_and_the_chain_says_so(scene: Scene) -> None:
    first, second = scene.replica("a"), scene.replica("b")
    scene.pass_ms((DAY_S - 1) * 1000)
    await first.round()
    assert (await scene.rows(), round(first.age_s)) == ([], DAY_S - 1)

    scene.pass_ms(2000)
    await asyncio.gather(first.round(), second.round())
    await asyncio.gather(first.round(), second.round())

    (row,) = await scene.rows()
    assert (row["faults"], len(row["sizes"]), json.loads(row["report"])["ok"]) == (0, 1, True)
    assert (first.integrity_errors, first.age_s, second.age_s) == (0, 0.0, 0.0)
    entry = await recorded(scene)
    assert (entry["ok"], entry["faults"], entry["first_bad"]) == (True, 0, None)
    assert entry["shards"][0]["entries"] == row["sizes"][0] > scene.shard.durable


async def test_a_tampered_database_is_found_by_the_next_run_and_by_all_replicas(scene: Scene) -> None:
    leader, follower = scene.replica("a"), scene.replica("b")
    scene.pass_ms(DAY_S * 1000 + 1000)
    seq = scene.shard.durable
    change = "UPDATE audit_entries SET amount = amount + $2 WHERE seq = $1"
    await scene.session.execute(change, seq, 1)

    try:
        await leader.round()
    finally:
        await scene.session.execute(change, seq, -1)
    scene.shard.leading = False
    await follower.round()

    assert (leader.integrity_errors, follower.integrity_errors) == (1, 1)
    entry = await recorded(scene)
    assert (entry["ok"], entry["faults"], entry["first_bad"]["shard"], entry["first_bad"]["seq"]) == (False, 1, 0, seq)
    assert "amount" in entry["first_bad"]["reason"]


async def test_a_chain_that_is_shorter_than_it_was_is_a_fault(scene: Scene) -> None:
    scene.pass_ms(DAY_S * 1000 + 1000)
    scene.shard.advance(scene.shard.durable + 1_000_000)

    await (verification := scene.replica("a")).round()

    assert verification.integrity_errors == 1
    assert "are remembered" in json.loads((await scene.rows())[0]["report"])["first_bad"]["reason"]


async def test_a_chain_without_a_tree_that_redis_remembers_is_a_fault(scene: Scene) -> None:
    scene.pass_ms(DAY_S * 1000 + 1000)
    (remembered,) = await scene.memory()
    scene.trees.append(Checkpoint(remembered.origin, remembered.size, bytes(32)))

    await (verification := scene.replica("a")).round()

    assert verification.integrity_errors == 1
    assert "known from elsewhere" in json.loads((await scene.rows())[0]["report"])["first_bad"]["reason"]


async def test_what_could_not_be_done_is_tried_again_and_is_no_fault(scene: Scene) -> None:
    scene.pass_ms(DAY_S * 1000 + 1000)
    away = scene._replace(subject=scene.subject._replace(database_url="postgresql://nobody@127.0.0.1:1/none"))
    verification = away.replica("a")

    await verification.round()
    scene.pass_ms(RETRY_MS - 1)
    await verification.round()

    (row,) = await scene.rows()
    assert (row["faults"], row["finished_at"] is not None, verification.integrity_errors) == (None, True, 0)
    assert verification.age_s > DAY_S


async def test_a_server_that_stops_takes_its_verification_along(scene: Scene) -> None:
    scene.pass_ms(DAY_S * 1000 + 1000)
    work = asyncio.create_task(scene.replica("a").round())
    deadline_s = time.monotonic() + DEADLINE_S
    while not multiprocessing.active_children():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.005)

    work.cancel()
    await asyncio.gather(work, return_exceptions=True)

    assert (work.cancelled(), multiprocessing.active_children()) == (True, [])
    assert [row["finished_at"] for row in await scene.rows()] == [None]


async def test_a_replica_that_fell_silent_is_replaced(scene: Scene) -> None:
    scene.pass_ms(DAY_S * 1000 + 1000)
    await scene.session.execute(
        "INSERT INTO ledger_verifications (started_at, claimed_until, replica) "
        "SELECT t, t + interval '5 minutes', 'dead' FROM to_timestamp($1::float8) AS t",
        scene.now_ms[0] / 1000,
    )
    verification = scene.replica("b")

    scene.pass_ms(CLAIM_MS - 1)
    await verification.round()
    before = [row["finished_at"] for row in await scene.rows()]
    scene.pass_ms(RETRY_MS)
    await verification.round()
    await verification.round()

    assert before == [None]
    assert [(row["replica"], row["faults"]) for row in await scene.rows()] == [("dead", None), ("b", 0)]
