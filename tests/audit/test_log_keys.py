"""A change of the keys that sign a log is noted once, with what an auditor needs of both."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from app.audit.log_keys import LogKeys
from app.audit.shard import Shard
from app.audit.signing_keys import signers_of
from app.db.migrate import migrate
from app.db.postgres import open_pool
from app.db.statements import Statements
from tests.audit.chain import mixed_events
from tests.audit.log_house import KEY, LOG_ORIGIN, LogHouse
from tests.audit.tamper import change

ORIGIN = "shieldx/test/s00"
OLD, NEW = (signers_of([bytes([number]) * 32], ORIGIN)[0] for number in (1, 2))


@pytest.fixture
async def owner(database_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(database_url)
    await migrate(connection)
    yield connection
    await connection.close()


@pytest.fixture
async def statements(owner: asyncpg.Connection[Any], database_url: str) -> AsyncIterator[Statements]:
    pool = await open_pool(database_url, 2)
    yield Statements(pool)
    pool.terminate()


async def sign(owner: asyncpg.Connection[Any], size: int, *signers: Any) -> None:
    await owner.execute(
        "INSERT INTO audit_checkpoints (shard, size, signers, root, note, epoch) VALUES (0, $1, $2, $3, 'note', 1)",
        size, "+".join(one.verifier.key_id.hex() for one in signers), bytes(32),
    )  # fmt: skip


async def note(statements: Statements, *signers: Any, leading: bool = True) -> LogKeys:
    shard = Shard(0, ORIGIN)
    shard.leading, shard.epoch = leading, 1
    keys = LogKeys(statements, [shard], {0: [one.verifier for one in signers]})
    await keys.note()
    await keys.note()
    return keys


async def changes(owner: asyncpg.Connection[Any]) -> list[dict[str, Any]]:
    rows = await owner.fetch("SELECT kind, details FROM pending_entries ORDER BY at")
    assert {row["kind"] for row in rows} <= {"log_key.rotate"}
    return [json.loads(row["details"]) for row in rows]


async def test_the_first_keys_are_no_change_and_a_follower_notes_nothing(
    owner: asyncpg.Connection[Any], statements: Statements
) -> None:
    follower = await note(statements, OLD, leading=False)
    assert await follower.known() == []

    await note(statements, OLD)
    await note(statements, OLD)

    assert await changes(owner) == []
    assert [(one.vkey, one.from_size, one.retired_at) for one in await follower.known()] == [(OLD.verifier.vkey, 0, None)]


async def test_an_overlap_is_two_entries_with_the_sizes_between_which_a_key_signs(
    owner: asyncpg.Connection[Any], statements: Statements
) -> None:
    old, new = OLD.verifier.vkey, NEW.verifier.vkey
    await note(statements, OLD)
    await sign(owner, 5, OLD)
    await sign(owner, 5, NEW, OLD)
    await note(statements, NEW, OLD)
    await sign(owner, 9, NEW, OLD)
    await sign(owner, 12, NEW)

    keys = await note(statements, NEW)

    assert await changes(owner) == [
        {"shard": 0, "origin": ORIGIN, "size": 5, "signing": [new, old], "added": [new], "retired": []},
        {"shard": 0, "origin": ORIGIN, "size": 9, "signing": [new], "added": [], "retired": [old]},
    ]
    assert [(one.vkey, one.from_size, one.until_size) for one in await keys.known()] == [(new, 5, None), (old, 0, 9)]


CHANGED = (
    ("INSERT INTO log_keys (shard, vkey, from_size) VALUES (0, 'mine', 0)", "key mine of shard 0 of which the chain"),
    ("INSERT INTO log_keys (shard, vkey, from_size) VALUES (1, 'mine', 0)", "key mine of shard 1 which cannot be one"),
    ("UPDATE log_keys SET retired_at = NULL, until_size = NULL WHERE until_size = 20", "is retired otherwise"),
    ("UPDATE log_keys SET until_size = 30 WHERE until_size = 20", "is retired otherwise"),
    ("UPDATE log_keys SET from_size = 9 WHERE from_size = 10", "signs from elsewhere on"),
    ("DELETE FROM log_keys WHERE until_size = 20", "has no row for key"),
)


async def test_keys_that_are_not_those_of_which_the_chain_tells_are_found(house: LogHouse) -> None:
    new = signers_of([bytes([7]) * 32], LOG_ORIGIN)[0]
    await house.write(mixed_events(30, 3))
    statements = Statements(house.pool)
    for size, signers in ((10, [KEY]), (20, [new, KEY]), (30, [new])):
        keys = LogKeys(statements, [house.shard], {0: [one.verifier for one in signers]})
        house.shard.durable = size - 1
        await house.signer(*signers, note_keys=keys.note).round()
    sound = await house.database.verify()
    await house.database.session.execute("CREATE TABLE kept AS SELECT * FROM log_keys")

    found = []
    for statement, _ in CHANGED:
        await change(house.database.session, statement)
        found.append((await house.database.verify()).first_bad)
        await house.database.session.execute("DELETE FROM log_keys; INSERT INTO log_keys SELECT * FROM kept")

    assert sound.first_bad is None
    for (statement, reason), bad in zip(CHANGED, found, strict=True):
        assert bad is not None, statement
        assert reason in bad.reason


async def test_a_first_key_that_has_not_signed_is_found(house: LogHouse) -> None:
    await house.write(mixed_events(30, 3))
    house.shard.durable = 29
    keys = LogKeys(Statements(house.pool), [house.shard], {0: [KEY.verifier]})
    await house.signer(note_keys=keys.note).round()
    sound = await house.database.verify()
    mine = signers_of([bytes([7]) * 32], LOG_ORIGIN)[0].verifier.vkey
    await house.database.session.execute("UPDATE log_keys SET vkey = $1", mine)

    report = await house.database.verify()

    assert sound.first_bad is None
    assert report.first_bad is not None
    assert report.first_bad.reason == f"log_keys has key {mine} of shard 0 which has not signed the newest checkpoint"


async def test_a_key_is_noted_before_it_signs(house: LogHouse) -> None:
    await house.write(mixed_events(30, 3))
    house.shard.durable = 9
    await house.signer().round()
    new = signers_of([bytes([7]) * 32], LOG_ORIGIN)[0]
    signed: list[str] = []

    async def noted() -> None:
        signed.append(await house.database.session.fetchval("SELECT string_agg(signers, ' ') FROM audit_checkpoints"))

    async def away() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        await house.signer(new, note_keys=away).round()
    signer = house.signer(new, note_keys=noted)
    await signer.round()
    house.shard.durable = 19
    await signer.round()

    assert signed == [KEY.verifier.key_id.hex()], "once, before the first checkpoint of the new key"
    assert (await house.opened(new.verifier)).checkpoint.size == 20
