"""The signer on real stores: what it keeps, how it goes on after a restart, and when it refuses to sign."""

from __future__ import annotations

import asyncio
import time

import asyncpg
import pytest

from app.audit import signer as signer_module
from app.audit.log import NotPublished, TreeDamaged
from app.audit.merkle import EMPTY_ROOT
from app.audit.note import Signer
from app.audit.shard import Shard
from app.audit.signer import LogForked, SignerLate
from app.db.keys import checkpoint_key
from tests.audit.chain import SEAL, mixed_events
from tests.audit.log_house import EPOCH, KEY, LOG_ORIGIN, LogHouse
from tests.audit.naive_tree import root_of
from tests.audit.tamper import rewrite_from
from tests.lag import Lag

MANY = 700  # more than two full tiles
ROUND_OF_A_BUSY_MACHINE_S = 0.5  # a round takes 50 ms where nothing else runs


async def rounds(house: LogHouse, *sizes: int) -> None:
    """Let the chain grow to each of these sizes, and one signer follow."""
    signer = house.signer()
    for size in sizes:
        house.shard.durable = size - 1
        await signer.round()


@pytest.mark.parametrize("sizes", [(1,), (0, 1, 2, 3), (255, 256, 257), (256,), (512, 513), (1, 300, 700), (700,)])
async def test_a_checkpoint_states_the_tree_of_the_chain(house: LogHouse, sizes: tuple[int, ...]) -> None:
    await house.write(mixed_events(MANY, 3))

    await rounds(house, *sizes)

    opened = await house.opened()
    assert (opened.checkpoint.origin, opened.checkpoint.size) == (LOG_ORIGIN, sizes[-1])
    assert opened.checkpoint.root == root_of(house.leaves[: sizes[-1]])
    stored = await house.database.session.fetch("SELECT level, number, hash FROM audit_tree ORDER BY number")
    assert [tuple(row) for row in stored] == [
        (1, number, root_of(house.leaves[number * 256 : (number + 1) * 256])) for number in range(sizes[-1] // 256)
    ]
    rows = await house.database.session.fetch("SELECT size FROM audit_checkpoints ORDER BY size")
    assert [row[0] for row in rows] == list(sizes)


async def test_the_empty_log_is_signed_too(house: LogHouse) -> None:
    await house.write([])

    await house.signer().round()

    assert (await house.opened()).checkpoint[:3] == (LOG_ORIGIN, 0, EMPTY_ROOT)


async def test_nothing_new_is_not_signed_again(house: LogHouse) -> None:
    await house.write(mixed_events(30, 3))
    signer = house.signer()
    house.shard.durable = 9

    for _ in range(3):
        await signer.round()

    assert signer.checkpoints == 1
    assert (signer.state, signer.size, signer.lag_s) == ("signing", 10, 0.0)


@pytest.mark.parametrize("sizes", [(5, 30), (256, 300), (300, 700), (512, 700)])
async def test_a_new_process_goes_on_where_the_last_one_stopped(house: LogHouse, sizes: tuple[int, int]) -> None:
    await house.write(mixed_events(MANY, 3))
    await rounds(house, sizes[0])

    await rounds(house, sizes[1])

    assert (await house.opened()).checkpoint.root == root_of(house.leaves[: sizes[1]])
    assert await house.database.session.fetchval("SELECT count(*) FROM audit_tree") == sizes[1] // 256


async def test_a_long_backlog_is_signed_in_steps(house: LogHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signer_module, "CHECKPOINT_ENTRIES_MAX", 100)
    monkeypatch.setattr(signer_module, "FETCH_HASHES", 30)
    await house.write(mixed_events(MANY, 3))

    await rounds(house, 350)

    rows = await house.database.session.fetch("SELECT size, root FROM audit_checkpoints ORDER BY size")
    assert [tuple(row) for row in rows] == [(size, root_of(house.leaves[:size])) for size in (100, 200, 300, 350)]


async def test_redis_remembers_what_was_signed(house: LogHouse) -> None:
    await house.write(mixed_events(30, 3))

    await rounds(house, 20)

    known = await house.redis.hgetall(checkpoint_key(0))
    assert known == {b"size": b"20", b"root": root_of(house.leaves[:20]).hex().encode()}


async def test_a_crash_between_redis_and_postgres_costs_nothing(house: LogHouse) -> None:
    await house.write(mixed_events(30, 3))
    await rounds(house, 10)
    ahead = {"size": 20, "root": root_of(house.leaves[:20]).hex()}
    await house.redis.hset(checkpoint_key(0), mapping=ahead)

    await rounds(house, 25)

    assert (await house.opened()).checkpoint.root == root_of(house.leaves[:25])


@pytest.mark.parametrize("size", [0, 3, 10])
async def test_a_redis_that_forgot_the_newest_is_caught_up(house: LogHouse, size: int) -> None:
    await house.write(mixed_events(30, 3))
    await rounds(house, 3, 10)
    await house.redis.delete(checkpoint_key(0))
    if size:
        await house.redis.hset(checkpoint_key(0), mapping={"size": size, "root": root_of(house.leaves[:size]).hex()})

    await rounds(house, 25)

    assert (await house.opened()).checkpoint.size == 25
    assert await house.redis.hget(checkpoint_key(0), "size") == b"25"


@pytest.mark.parametrize(
    "memory", [{"size": "x", "root": "00"}, {"size": "5", "root": "no hex"}, {"size": "5"}, {"root": "00"}]
)
async def test_a_memory_that_cannot_be_read_is_not_passed_over(house: LogHouse, memory: dict[str, str]) -> None:
    await house.write(mixed_events(30, 3))
    await house.redis.hset(checkpoint_key(0), mapping=memory)
    house.shard.durable = 9

    with pytest.raises(LogForked, match="cannot be read"):
        await house.signer().round()


async def test_a_postgres_from_a_backup_is_not_signed(house: LogHouse) -> None:
    await house.write(mixed_events(MANY, 3))
    await rounds(house, 300, 600)
    await house.cut(400)
    house.shard.durable = 399

    with pytest.raises(LogForked, match=r"600 entries was signed.*has 400.*older backup"):
        await house.signer().round()

    assert await house.database.session.fetchval("SELECT max(size) FROM audit_checkpoints") == 300


async def test_a_chain_that_went_on_from_a_backup_is_not_signed(house: LogHouse) -> None:
    await house.write(mixed_events(60, 3))
    await rounds(house, 20, 50)
    await house.cut(40)
    await house.database.session.execute(
        "INSERT INTO audit_entries SELECT shard, seq + 20, at, gen_random_uuid(), tenant_id, type, amount, balance, reserved, "
        "version, entry, sha256(hash), prev_hash, signature, key_id FROM audit_entries WHERE seq >= 20"
    )
    await house.database.session.execute("UPDATE ledger_shards SET head_seq = 59")
    house.shard.durable = 59

    with pytest.raises(LogForked, match="50 entries with another root was signed"):
        await house.signer().round()

    assert await house.database.session.fetchval("SELECT max(size) FROM audit_checkpoints") == 20


async def test_an_entry_changed_below_a_checkpoint_stops_the_signer(house: LogHouse) -> None:
    events = mixed_events(60, 3)
    await house.write(events)
    await rounds(house, 50)
    events[30].description = "another one"
    prev_hash = await house.database.session.fetchval("SELECT hash FROM audit_entries WHERE seq = 29")
    await rewrite_from(house.database.session, events, 30, prev_hash, SEAL)
    house.shard.durable = 59

    with pytest.raises(LogForked, match="does not have the root of its last checkpoint, size 50"):
        await house.signer().round()


async def test_a_checkpoint_row_that_was_edited_stops_the_signer(house: LogHouse) -> None:
    await house.write(mixed_events(60, 3))
    await rounds(house, 20, 50)
    await house.database.session.execute("UPDATE audit_checkpoints SET root = sha256('x') WHERE size = 50")

    with pytest.raises(LogForked, match="not what its row says"):
        await house.signer().round()


async def test_missing_hashes_stop_the_signer(house: LogHouse) -> None:
    await house.write(mixed_events(MANY, 3))
    await rounds(house, 600)
    await house.database.session.execute("DELETE FROM audit_tree WHERE number = 1")

    with pytest.raises(TreeDamaged, match="level 1"):
        await house.signer().round()


async def test_a_writer_that_lost_the_shard_signs_nothing(house: LogHouse) -> None:
    await house.write(mixed_events(30, 3))
    house.shard.durable = 9
    await house.database.session.execute("UPDATE ledger_shards SET epoch = epoch + 1")

    with pytest.raises(asyncpg.SerializationError, match="is not at epoch 3"):
        await house.signer().round()

    with pytest.raises(NotPublished):
        await house.log.checkpoint(0)


async def test_two_signers_take_turns(house: LogHouse) -> None:
    await house.write(mixed_events(60, 3))
    one, other = house.signer(), house.signer()
    house.shard.durable = 9
    await one.round()
    await other.round()
    house.shard.durable = 19
    await one.round()
    house.shard.durable = 29

    with pytest.raises(asyncpg.SerializationError, match="has size 20, not 10"):
        await other.round()

    assert (await house.opened()).checkpoint.size == 20


async def test_of_signers_that_race_one_signs(house: LogHouse) -> None:
    await house.write(mixed_events(60, 3))
    house.shard.durable = 49
    signers = [house.signer() for _ in range(3)]
    for signer in signers:
        await signer._load()  # all stand at the beginning, also when one is quicker than the others

    results = await asyncio.gather(*(signer.round() for signer in signers), return_exceptions=True)

    assert [result is None for result in results].count(True) == 1
    assert await house.database.session.fetchval("SELECT count(*) FROM audit_checkpoints") == 1


async def test_another_memory_in_redis_at_the_last_moment_wins(house: LogHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    await house.write(mixed_events(30, 3))
    signer = house.signer()
    house.shard.durable = 9
    check = signer._check_memory

    async def raced(known: object, size: int) -> None:
        await check(known, size)
        await house.redis.hset(checkpoint_key(0), mapping={"size": 1, "root": "00" * 32})

    monkeypatch.setattr(signer, "_check_memory", raced)

    with pytest.raises(SignerLate):
        await signer.round()


async def test_both_keys_sign_while_they_are_rotated_and_an_idle_log_is_signed_again(house: LogHouse) -> None:
    old, new = KEY, Signer(LOG_ORIGIN, bytes(32))
    await house.write(mixed_events(30, 3))
    house.shard.durable = 9
    await house.signer(old).round()

    await house.signer(new, old).round()

    for key in (old, new):
        assert (await house.opened(key.verifier)).checkpoint.size == 10
    await house.signer(new).round()
    assert [one.verifier.key_id for one in (await house.opened(new.verifier, old.verifier)).signatures] == [
        new.verifier.key_id
    ]


async def test_the_task_signs_within_a_second_and_says_when_it_refuses(house: LogHouse, lag: Lag) -> None:
    await house.write(mixed_events(MANY, 3))
    crashes: list[BaseException] = []
    signer = house.signer()
    house.shard.durable = 99
    signer.start(crashes.append)
    await until(lambda: signer.size == 100)
    grown_s = time.monotonic()
    house.shard.durable = 599
    await until(lambda: signer.size == 600)
    waited_s = time.monotonic() - grown_s
    await house.cut(400)
    again, view = house.signer(), Shard(0, LOG_ORIGIN)
    view.durable, view.leading, view.epoch = 399, True, EPOCH
    again = house.signer(shard=view)
    again.start(crashes.append)

    await until(lambda: again.state == "refused")

    assert waited_s < 1.0 + ROUND_OF_A_BUSY_MACHINE_S + lag.largest_s
    assert "older backup" in again.reason
    assert crashes == []


async def test_the_task_rests_while_another_process_writes(house: LogHouse) -> None:
    await house.write(mixed_events(30, 3))
    house.shard.leading = False
    house.shard.durable = 9
    signer = house.signer()

    signer.start(lambda error: pytest.fail(str(error)))
    await until(lambda: signer.state == "following")
    house.shard.leading = True

    await until(lambda: signer.size == 10)


async def until(holds: object) -> None:
    """Wait until something holds, for ten seconds at most."""
    assert callable(holds)
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("table", ["audit_tree", "audit_checkpoints", "audit_cosignatures"])
@pytest.mark.parametrize("statement", ["UPDATE {} SET shard = 1", "DELETE FROM {}", "TRUNCATE {}", "DROP TABLE {}"])
async def test_the_server_cannot_take_back_what_was_signed(house: LogHouse, table: str, statement: str) -> None:
    await house.write(mixed_events(300, 3))
    await rounds(house, 300)

    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await house.log.rows(statement.format(table))
