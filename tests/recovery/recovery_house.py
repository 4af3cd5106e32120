"""A ledger under test: its stores, its replicas, all that clients ever asked of it, and the check of everything."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import asyncpg
import orjson
from recovery_controls import compare_controls
from recovery_load import Load
from recovery_operations import Operation, Plan
from recovery_proof import LedgerState, Proof, fold
from redis.asyncio import Redis
from stall_proxy import StallProxy

from app.audit.entry import RowSeal
from app.audit.signing_keys import audit_key
from app.audit.verify import verify_ledger
from app.credits.request import Fingerprints
from app.db.keys import shard_keys, shard_tag
from app.settings import Settings
from tests.redis_groups import PrivateCluster
from tests.server import ROOT_KEY, ShieldxServer
from tests.stores import PrivatePostgres, PrivateRedis

ORDINARY_TENANTS: Final = 24
OPENING_BALANCE: Final = 3_000
REPLAYS: Final = 200  # of one load: a third of its answers, those first that were refused or asked more than once
EARLIER_PART: Final = 5
TRANSFER_WEIGHT: Final = 8  # among the operations of a load
CAUGHT_TRANSFER_WEIGHT: Final = 60  # where some transfers over shards are to be caught half-way
QUIET_TIMEOUT_S: Final = 60.0
SWEEP_TIMEOUT_S: Final = 120.0  # a transfer counts as stalled after 5 s, and one look takes a second
AOF_SAMPLE_S: Final = 0.02
LOST_SECONDS: Final = 1.0  # what appendfsync everysec may lose


class House:
    """One ledger. Scenarios may share it: later ones also check what earlier ones were told."""

    def __init__(
        self,
        directory: Path,
        postgres: PrivatePostgres,
        redis: PrivateRedis | PrivateCluster,
        database_url: str,
        *,
        shards: int = 1,
        proxies: Mapping[str, StallProxy] | None = None,
        restricted_url: str = "",
        transfer_weight: int = TRANSFER_WEIGHT,
    ) -> None:
        """`database_url` is the owner's, which also checks, always on the direct way.

        proxies         stand between the servers and "redis" and "postgres"
        transfer_weight how many of the operations of a load are transactions over several tenants
        restricted_url  what servers get besides the owner's URL, if they are to run as the restricted role
        """
        self.directory: Final = directory
        self.postgres: Final = postgres
        self.redis: Final = redis
        self.database_url: Final = database_url
        self.shards: Final = shards
        self.servers: list[ShieldxServer] = []
        self.spoiled = False
        self.proxies: Final = proxies or {}
        self._redis_url, self._server_database_url = redis.url, restricted_url or database_url
        self._settings = {"migrate_database_url": database_url} if restricted_url else {}
        if proxies is not None:
            database = database_url.partition("?")[0].rpartition("/")[2]
            self._redis_url = f"redis://127.0.0.1:{proxies['redis'].port}/0"
            self._server_database_url = f"postgresql://postgres@127.0.0.1:{proxies['postgres'].port}/{database}"
        self._transfer_weight = transfer_weight
        self._journal: list[Operation] = []
        self._loads = 0
        self._aof_sizes: list[tuple[float, int]] = []

    def add_server(self) -> ShieldxServer:
        """Return a further replica, which does not run yet."""
        name = f"replica-{len(self.servers) + 1}-{self._loads}"
        server = ShieldxServer(
            self.directory, self._redis_url, self._server_database_url, shards=self.shards, name=name, **self._settings
        )
        self.servers.append(server)
        return server

    async def start_servers(self, count: int) -> None:
        """Have `count` replicas that run and are ready."""
        self.servers[:] = [server for server in self.servers if server.alive]
        for server in self.servers[count:]:
            server.kill()
        del self.servers[count:]
        while len(self.servers) < count:
            self.add_server().launch()
        await self.wait_ready()

    def kill_servers(self) -> None:
        """SIGKILL every replica."""
        for server in self.servers:
            server.kill()

    async def wait_ready(self) -> None:
        """Wait until every replica that runs is ready by itself."""
        await asyncio.gather(*(server.wait_ready() for server in self.servers if server.alive and not server.paused))

    async def open_load(self, seed: int, *, clients: int) -> Load:
        """Return a load on tenants of its own, their accounts open and funded. It does not run yet."""
        self._loads += 1
        label = f"load{self._loads}-{seed:08x}"
        tenants = [f"{label}-{'hot' if i == 0 else i}" for i in range(ORDINARY_TENANTS + 1)]
        plan = Plan(seed, label, tenants, self._transfer_weight)
        load = Load(self.servers, plan, seed, clients=clients)
        await load.connect()
        opening = plan.opening(OPENING_BALANCE)
        half = len(opening) // 2
        await load.settle(opening[:half])
        await load.settle(opening[half:])
        load.operations.extend(opening)
        return load

    # What happens to the append-only file.

    async def watch_aof(self) -> None:
        """Note its size over time, so that its last second is known when Redis dies."""
        loop = asyncio.get_running_loop()
        while True:
            self._aof_sizes.append((loop.time(), self.redis.aof_size()))
            del self._aof_sizes[:-500]
            await asyncio.sleep(AOF_SAMPLE_S)

    def cut_last_second(self, pick: random.Random, how: str) -> int:
        """Cut up to a second off the file of the dead Redis; return how many bytes it lost.

        how  "nothing"; "record": up to the end of a whole command; "byte": anywhere; "half" and "all": more than a second
        """
        size = self.redis.aof_size()
        now_s = asyncio.get_running_loop().time()
        old = max((known for at, known in self._aof_sizes if at <= now_s - LOST_SECONDS and known <= size), default=0)
        keep = {"nothing": size, "half": size // 2, "all": 0}.get(how, pick.randint(min(old, size), size))
        if how == "record":
            keep = record_boundary(self.redis.aof.read_bytes(), keep)
        self.redis.cut_aof(keep)
        return size - keep

    # What is checked.

    async def prove(self, load: Load, *, sample: int = REPLAYS) -> None:
        """Check every promise to every client so far; AssertionError with what is broken.

        sample  answers of this load that are asked for again, and a part of it of earlier loads
        """
        load.check()
        self._journal.extend(load.operations)
        assert any(server.alive for server in self.servers), "no server is left"
        state, transfer_legs, fingerprints = await self._quiet_state()
        seal = RowSeal(audit_key(Settings(), ROOT_KEY))
        report = await verify_ledger(self.database_url, seals={seal.key_id: seal}, progress=lambda *_: None, processes=1)
        assert (report.first_bad, report.signatures_unchecked) == (None, 0), report
        proof = Proof(state, fingerprints)
        proof.check(self._journal, transfer_legs)
        assert not proof.faults, f"{len(proof.faults)} faults\n{proof.report()}\n{load.report()}"
        await self._replay_some(load, sample)
        await self._check_trial_balance(load)

    async def _replay_some(self, load: Load, sample: int) -> None:
        """Replay a sample of what was answered, above all refusals and what had to be asked more than once."""
        pick = random.Random(len(self._journal))
        settled = [operation for operation in load.operations if operation.settled]
        telling = [o for o in settled if o.attempts > 1 or (o.settled and o.settled.status not in {200, 201})]
        telling = pick.sample(telling, min(len(telling), sample))
        others = pick.sample(settled, min(len(settled), sample - len(telling) // 2))
        earlier = pick.sample(self._journal, min(len(self._journal), sample // EARLIER_PART))
        chosen = {operation.key: operation for operation in (*telling, *others, *earlier)}
        await load.replay(list(chosen.values()))
        load.check()

    async def _check_trial_balance(self, load: Load) -> None:
        answer = await load.read("/v1/ledger/trial-balance")
        assert answer["total"] == 0, answer

    async def _quiet_state(self) -> tuple[LedgerState, dict[str, int], Fingerprints]:
        """Read Postgres and Redis at one moment, and hold both against the fold of the chain."""
        session = await asyncpg.connect(self.database_url)
        redis = self.redis.client()
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + QUIET_TIMEOUT_S
        try:
            while True:
                heads = await self._redis_heads(redis)
                async with session.transaction(isolation="repeatable_read", readonly=True):
                    ledger = await session.fetchrow("SELECT origin, shard_count, idempotency_salt FROM ledger")
                    rows = await session.fetch(
                        "SELECT shard, seq, entry, hash, prev_hash FROM audit_entries ORDER BY shard, seq"
                    )
                    assert ledger is not None, "the database holds no ledger"
                    state = fold(rows, ledger["origin"], ledger["shard_count"])
                    tables = await _tables(session)
                redis_state = await _redis_state(redis, state)
                if heads == state.heads == await self._redis_heads(redis):
                    break
                assert loop.time() < deadline_s, f"Redis ends at {heads}, the chain at {state.heads}"
                await asyncio.sleep(0.1)
            state.faults += compare(state, tables, redis_state)
            return state, tables["transfers"], Fingerprints(ledger["idempotency_salt"])
        finally:
            await redis.aclose()
            await session.close()

    async def _redis_heads(self, redis: Redis) -> dict[int, int]:
        seqs = [await redis.hget(shard_keys(shard)[0], "seq") for shard in range(self.shards)]
        return {shard: int(seq) if seq is not None else -2 for shard, seq in enumerate(seqs)}

    async def wait_transfers_closed(self) -> int:
        """Wait until the sweeper has finished every transfer that somebody left, and no leg is held; return their number.

        A leg that Redis has and Postgres lacks, as while its shard is recovered, is a held one.
        """
        session = await asyncpg.connect(self.database_url)
        redis = self.redis.client()
        open_ones = (
            "SELECT (SELECT count(*) FROM credit_transfers WHERE state NOT IN ('committed', 'aborted')) + "
            "(SELECT count(*) FROM credit_reservations WHERE transfer_id IS NOT NULL AND status = 'held')"
        )
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + SWEEP_TIMEOUT_S
        try:
            found = await session.fetchval(open_ones)
            while True:
                heads = await self._redis_heads(redis)
                durable = dict(await session.fetch("SELECT shard, head_seq FROM ledger_shards"))
                count = await session.fetchval(open_ones)
                if count == 0 and heads == durable == await self._redis_heads(redis):
                    return int(found)
                assert loop.time() < deadline_s, f"{count} are open; Redis ends at {heads}, the chain at {durable}"
                await asyncio.sleep(0.1)
        finally:
            await redis.aclose()
            await session.close()


async def _tables(session: asyncpg.Connection[Any]) -> dict[str, Any]:
    accounts = await session.fetch("SELECT tenant_id, balance, reserved, incoming, version FROM credit_accounts")
    holds = await session.fetch(
        "SELECT reservation_id::text, tenant_id, amount FROM credit_reservations WHERE status = 'held'"
    )
    transfers = await session.fetch("SELECT transaction_id::text, legs::text FROM credit_transfers")
    controls = await session.fetch("SELECT tenant_id, controls::text FROM credit_accounts WHERE controls <> '{}'")
    alerts = await session.fetch("SELECT tenant_id, type, shard, seq FROM credit_alerts")
    return {
        "accounts": {row[0]: tuple(row)[1:] for row in accounts},
        "holds": {row[0]: tuple(row)[1:] for row in holds},
        "controls": {row[0]: orjson.loads(row[1]) for row in controls},
        "alerts": [tuple(row) for row in alerts],
        "transfers": {row[0]: len(orjson.loads(row[1])) for row in transfers},
    }


async def _redis_state(redis: Redis, state: LedgerState) -> dict[str, Any]:
    """Read the accounts and the open holds of the fold as Redis has them, and which holds it thinks will expire."""
    async with redis.pipeline(transaction=False) as pipe:
        for tenant, shard in state.shard_of.items():
            pipe.hmget(f"{shard_tag(shard)}account:{tenant}", "balance", "reserved", "incoming", "version")
            pipe.zrange(f"{shard_tag(shard)}holds:{tenant}", 0, -1)
            pipe.hget(f"{shard_tag(shard)}account:{tenant}", "controls")
        for identifier, hold in state.holds.items():
            pipe.hmget(f"{shard_tag(hold['shard'])}reservation:{identifier}", "tenant", "amount", "status")
        for shard in state.heads:
            pipe.zrange(shard_keys(shard)[2], 0, -1)
        answers = iter(await pipe.execute())
    accounts, waiting, controls = {}, set(), {}
    for tenant in state.shard_of:
        accounts[tenant] = tuple(int(value or 0) for value in next(answers))
        waiting |= set(next(answers))
        controls[tenant] = next(answers)
    holds = {identifier: tuple(next(answers)) for identifier in state.holds}
    expiry = {identifier for _ in state.heads for identifier in next(answers)}
    return {"accounts": accounts, "holds": holds, "waiting": waiting, "expiry": expiry, "controls": controls}


def compare(state: LedgerState, tables: dict[str, Any], redis_state: dict[str, Any]) -> list[str]:
    """Return where Redis, Postgres and the fold of the chain disagree on accounts, holds, quotas and alerts."""
    faults = compare_controls(state.entries, tables["alerts"], tables["controls"], redis_state["controls"])
    for tenant, account in state.accounts.items():
        found = {"postgres": tables["accounts"].get(tenant), "redis": redis_state["accounts"].get(tenant)}
        faults += [
            f"{tenant}: {name} has {has}, the chain {account}" for name, has in found.items() if has != tuple(account)
        ]
    faults += [f"postgres has {tenant}, the chain has not" for tenant in tables["accounts"].keys() - state.accounts.keys()]
    holds = {identifier: (hold["tenant_id"], hold["amount"]) for identifier, hold in state.holds.items()}
    if tables["holds"] != holds:
        faults.append(f"held in Postgres only or otherwise: {dict(tables['holds'].items() - holds.items())}, "
                      f"in the chain: {dict(holds.items() - tables['holds'].items())}")  # fmt: skip
    for identifier, (tenant, amount) in holds.items():
        if redis_state["holds"][identifier] != (tenant, str(amount), "held"):
            faults.append(f"hold {identifier} of {tenant} is {redis_state['holds'][identifier]} in Redis")
    spends = {identifier for identifier, hold in state.holds.items() if hold["type"] == "reserve"}
    for name in ("waiting", "expiry"):
        if redis_state[name] != spends:
            faults.append(f"{name} in Redis: {redis_state[name] ^ spends} are not what the chain holds")
    sums: dict[str, list[int]] = {}
    for hold in state.holds.values():
        one = sums.setdefault(hold["tenant_id"], [0, 0])
        one[hold["type"] == "prepare_in"] += hold["amount"]
    for tenant, account in state.accounts.items():
        if [account.reserved, account.incoming] != sums.get(tenant, [0, 0]):
            faults.append(f"{tenant} has {account}, its open reservations add up to {sums.get(tenant)}")
    return faults


def record_boundary(content: bytes, at: int) -> int:
    """Return the end of the last whole command at or before byte `at` of an append-only file."""
    position = 0
    while True:
        end = _command_end(content, position)
        if end is None or end > at:
            return position
        position = end


def _command_end(content: bytes, start: int) -> int | None:
    line = content.find(b"\r\n", start)
    if line < 0 or content[start : start + 1] != b"*":
        return None
    position = line + 2
    for _ in range(int(content[start + 1 : line])):
        line = content.find(b"\r\n", position)
        if line < 0:
            return None
        position = line + 2 + int(content[position + 1 : line]) + 2
    return position if position <= len(content) else None
