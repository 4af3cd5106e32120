"""What is done for private data now and then: retention, tombstones, master keys that change."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from app.credits.lifecycle import Lifecycle
from app.credits.records import Records
from app.credits.upkeep import Upkeep
from app.privacy.envelope import MasterKeyRefused, MasterKeys, kek_id, make_master_key_file
from app.privacy.opening import EXPIRY_INTERVAL_S, RELOAD_INTERVAL_S, Privacy
from app.privacy.payment import Payment
from app.privacy.rotation import add_master_key, rotate
from app.privacy.store import PrivateStore
from tests.privacy.conftest import OLD, Clock, Facts

PAYMENT = Payment("4111111111111111", "John Doe", "12/27")
DAY_MS = 86_400_000


class Keys:
    """The master keys, as a file that people may change or break."""

    def __init__(self) -> None:
        self.masters = MasterKeys([OLD])
        self.fault: Exception | None = None
        self.reads = 0

    def __call__(self) -> MasterKeys:
        self.reads += 1
        if self.fault is not None:
            raise self.fault
        return self.masters


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def privacy(pool: asyncpg.Pool[Any], keys: Keys, facts: Facts, clock: Clock) -> Privacy:
    privacy = Privacy(keys, facts, 10, clock)
    privacy.load(keys())
    privacy.open(pool)
    return privacy


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def store_of(privacy: Privacy) -> PrivateStore:
    assert privacy.store is not None
    return privacy.store


async def test_what_is_too_old_goes_once_an_hour_with_a_tombstone(privacy: Privacy, facts: Facts, clock: Clock) -> None:
    await store_of(privacy).keep("r1", "t1", "t1", PAYMENT)
    await privacy.round()
    clock.now_ms += 11 * DAY_MS
    await store_of(privacy).keep("r2", "t1", "t1", PAYMENT)
    await privacy.round()
    clock.now_ms += 11 * DAY_MS - EXPIRY_INTERVAL_S * 1000
    await privacy.round()
    await privacy.round()

    assert [(kind, details["records"], details["class"]) for kind, details in facts.seen] == [
        ("privacy.retention", 1, "payment"), ("privacy.retention", 1, "payment"),
    ]  # fmt: skip


async def test_a_tombstone_that_the_chain_did_not_take_is_entered_by_the_next_round(privacy: Privacy, facts: Facts) -> None:
    await store_of(privacy).keep("r1", "t1", "t1", PAYMENT)
    await store_of(privacy).erase("t1", request_id="q", basis="gdpr-17")
    facts.fault = ConnectionError("no chain")
    with pytest.raises(ConnectionError):
        await privacy.round()
    facts.fault = None

    await privacy.round()
    await privacy.round()

    assert [kind for kind, _ in facts.seen] == ["privacy.erasure"]


async def test_a_new_master_key_is_used_within_seconds_and_a_broken_file_changes_nothing(
    privacy: Privacy, keys: Keys, owner: asyncpg.Connection[Any], clock: Clock
) -> None:
    privacy.reload()
    keys.masters, keys.fault = MasterKeys([bytes(range(1, 33)), OLD]), OSError("gone")
    clock.now_ms += RELOAD_INTERVAL_S * 1000
    privacy.reload()
    await store_of(privacy).keep("r1", "t1", "t1", PAYMENT)
    keys.fault = None
    clock.now_ms += RELOAD_INTERVAL_S * 1000
    privacy.reload()
    await store_of(privacy).keep("r2", "t2", "t2", PAYMENT)

    used = [row[0] for row in await owner.fetch("SELECT kek_id FROM private_keys ORDER BY subject")]
    assert used == [kek_id(OLD), kek_id(bytes(range(1, 33)))]
    assert keys.reads == 4


async def test_the_file_of_a_data_directory_is_rotated_under_a_running_server(
    ledger_url: str, pool: asyncpg.Pool[Any], facts: Facts, clock: Clock, tmp_path: Path, owner: asyncpg.Connection[Any]
) -> None:
    path = tmp_path / "master.key"
    running = Privacy(lambda: make_master_key_file(path), facts, 10, clock)
    running.load(make_master_key_file(path))
    running.open(pool)
    await store_of(running).keep("r1", "t1", "t1", PAYMENT)
    before = make_master_key_file(path)

    masters, done = await rotate(ledger_url, path, wait_s=0)

    assert (done.rewrapped, done.left) == (1, {})
    assert masters.ids == (masters.current_id, *before.ids)
    assert path.stat().st_mode & 0o777 == 0o600
    assert await owner.fetchval("SELECT kek_id FROM private_keys") == masters.current_id
    # The server meets a key that is wrapped by one it does not know, and reads the file again.
    assert (await store_of(running).read("r1", actor="a", purpose="p")).payment == PAYMENT
    assert names_in(tmp_path) == ["master.key"]


async def test_a_rotation_that_was_cut_off_makes_no_further_key(
    ledger_url: str, pool: asyncpg.Pool[Any], facts: Facts, clock: Clock, tmp_path: Path
) -> None:
    path = tmp_path / "master.key"
    await PrivateStore(pool, make_master_key_file(path), facts, clock).keep("r1", "t1", "t1", PAYMENT)
    interrupted = add_master_key(path)

    masters, done = await rotate(ledger_url, path, wait_s=0)

    assert (masters.ids, done.rewrapped) == (interrupted.ids, 1)


async def test_two_rotations_of_one_file_take_turns(
    ledger_url: str, pool: asyncpg.Pool[Any], facts: Facts, clock: Clock, tmp_path: Path
) -> None:
    path = tmp_path / "master.key"
    await PrivateStore(pool, make_master_key_file(path), facts, clock).keep("r1", "t1", "t1", PAYMENT)

    ended = await asyncio.gather(*(rotate(ledger_url, path, wait_s=0) for _ in range(3)), return_exceptions=True)

    refused = [str(one) for one in ended if isinstance(one, MasterKeyRefused)]
    assert refused == [f"another rotation of {path} is running: run this again when it has ended"] * 2
    assert len(make_master_key_file(path).ids) == 2
    assert (await rotate(ledger_url, path, wait_s=0))[1].rewrapped == 1


async def test_a_key_that_nobody_can_open_does_not_stop_a_rotation_and_a_wrong_file_gets_no_new_key(
    ledger_url: str, pool: asyncpg.Pool[Any], facts: Facts, clock: Clock, tmp_path: Path, owner: asyncpg.Connection[Any]
) -> None:
    path, wrong = tmp_path / "master.key", tmp_path / "wrong.key"
    store = PrivateStore(pool, make_master_key_file(path), facts, clock)
    for number in ("1", "2"):
        await store.keep(f"r{number}", f"t{number}", f"t{number}", PAYMENT)
    await owner.execute("UPDATE private_keys SET kek_id = $1 WHERE subject = 't2'", bytes(8))
    before = make_master_key_file(wrong).ids

    _, fruitless = await rotate(ledger_url, wrong, wait_s=0)
    masters, done = await rotate(ledger_url, path, wait_s=0)

    assert (fruitless.rewrapped, make_master_key_file(wrong).ids) == (0, before)
    assert (len(masters.ids), done.rewrapped, done.left) == (2, 1, {bytes(8).hex(): 1})


async def test_only_the_replica_that_leads_does_the_jobs(
    pool: asyncpg.Pool[Any], privacy: Privacy, facts: Facts, clock: Clock, owner: asyncpg.Connection[Any]
) -> None:
    leads = False
    upkeep = Upkeep(Records(pool), Lifecycle(pool, (0, 1), clock), privacy, lambda: leads)
    await store_of(privacy).keep("r1", "t1", "t1", PAYMENT)
    await store_of(privacy).erase("t1", request_id="q", basis="gdpr-17")

    await upkeep.tick()
    before = (await owner.fetchval("SELECT count(*) FROM ledger_jobs"), len(facts.seen))
    leads = True
    await upkeep.tick()

    assert before == (0, 0)
    assert await owner.fetch("SELECT name FROM ledger_jobs") == [("balances summary",)]
    assert [kind for kind, _ in facts.seen] == ["privacy.erasure"]
