"""What somebody with every right on Postgres and the key of the seals cannot hide from who knows something besides."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from app.audit.checkpoint import Checkpoint
from app.audit.command import run_verify
from app.audit.ground import shows_all
from app.audit.increment import verify_since
from app.audit.note import Signer
from app.audit.report import EXIT_INTACT, EXIT_TAMPERED, Report
from app.audit.trust import Trust, read_trust
from app.audit.verify import CannotCheckError, verify_ledger
from app.db.keys import checkpoint_key
from tests.audit.chain import ORIGIN, SEAL, Book, mixed_events
from tests.audit.conftest import LedgerDatabase
from tests.audit.log_house import KEY, LOG_ORIGIN, LogHouse
from tests.audit.naive_tree import root_of
from tests.audit.tamper import rewrite_from

KEYS = (KEY.verifier,)
EVENTS = mixed_events(300, 3)
SIZE = len(EVENTS)
REWRITTEN = 200
OTHER = "is known from elsewhere"


async def verified(house: LogHouse, trust: Trust) -> Report:
    work = verify_since if trust.checkpoints else verify_ledger
    return await work(house.database.url, seals={SEAL.key_id: SEAL}, progress=lambda *_: None, trust=trust)


def reason_of(report: Report) -> str:
    assert report.first_bad is not None
    return report.first_bad.reason


def tree(house: LogHouse, size: int, shard: int = 0) -> Checkpoint:
    return Checkpoint(f"{ORIGIN}/s{shard:02d}", size, root_of(house.leaves[:size]))


async def sign_all(house: LogHouse) -> None:
    house.shard.durable = len(house.leaves) - 1
    await house.signer().round()


async def rewrite_unseen(house: LogHouse) -> None:
    """Rewrite the chain from REWRITTEN on with all that Postgres says of it, and take what was signed below away."""
    events = list(EVENTS)
    events[REWRITTEN] = replace(events[REWRITTEN], description="something else")
    await rewrite_from(house.database.session, events, REWRITTEN, house.leaves[REWRITTEN - 1], SEAL)
    await house.database.session.execute("DELETE FROM audit_checkpoints; DELETE FROM audit_tree")


@pytest.fixture
async def signed(house: LogHouse) -> LogHouse:
    await house.write(EVENTS)
    await sign_all(house)
    return house


async def test_a_chain_passes_through_its_own_trees(signed: LogHouse) -> None:
    passed = tuple(tree(signed, size) for size in (0, 1, 150, 256, SIZE))
    since = Trust(KEYS, {LOG_ORIGIN: tree(signed, 150)}, passed=passed)

    assert (await verified(signed, Trust(KEYS, passed=passed))).first_bad is None
    assert (await verified(signed, since)).first_bad is None


async def test_a_history_rewritten_without_its_checkpoints_is_found_by_a_trusted_tree(signed: LogHouse) -> None:
    known = (tree(signed, REWRITTEN), tree(signed, SIZE))
    await rewrite_unseen(signed)

    report = await verified(signed, Trust(passed=known))

    assert report.first_bad is not None
    assert (report.first_bad.shard, report.first_bad.seq) == (0, REWRITTEN)
    assert report.first_bad.reason == f"the first {SIZE} entries are not those of the tree that {OTHER}"
    since = Trust(checkpoints={LOG_ORIGIN: known[0]}, passed=known[1:])
    assert OTHER in reason_of(await verified(signed, since))


async def test_a_tree_that_the_chain_has_not_grown_to_is_missed(signed: LogHouse) -> None:
    longer = Checkpoint(LOG_ORIGIN, SIZE + 5, bytes(32))

    assert reason_of(await verified(signed, Trust(passed=(longer,)))) == (
        f"a tree of {SIZE + 5} entries {OTHER}, the chain has {SIZE}"
    )


async def test_a_key_demands_a_checkpoint_that_is_not_far_behind(house: LogHouse) -> None:
    book = Book()
    book.account("t")
    for _ in range(4):
        book.at_ms += 61_000
        book.topup("t", 1)
    await house.write(book.events)

    unsigned = reason_of(await verified(house, Trust(KEYS)))
    house.shard.durable = 1
    await house.signer().round()
    behind = reason_of(await verified(house, Trust(KEYS)))
    house.shard.durable = 3
    await house.signer().round()

    assert unsigned == "the entries from seq 0 on are under no checkpoint; one is signed every second"
    assert behind == "the entries from seq 2 on are under no checkpoint; one is signed every second"
    assert (await verified(house, Trust(KEYS))).ok, "what came in a signer's last second is no fault"


@pytest.mark.parametrize("since", [False, True])
async def test_a_log_that_the_ledger_lost_is_missed(signed: LogHouse, since: bool) -> None:
    start = {LOG_ORIGIN: tree(signed, SIZE)} if since else {}
    lost = f"the log {ORIGIN}/s01 {OTHER}, the ledger has 1 shards"
    key = Signer(f"{ORIGIN}/s01", bytes(32)).verifier

    for trust in (Trust((*KEYS, key), start), Trust(KEYS, start, {1: 5}), Trust(KEYS, start, passed=(tree(signed, 5, 1),))):
        assert reason_of(await verified(signed, trust)) == lost


async def test_a_key_of_another_ledger_cannot_be_checked_here(signed: LogHouse) -> None:
    trust = Trust((Signer("elsewhere/s00", bytes(32)).verifier,))

    with pytest.raises(CannotCheckError, match="elsewhere/s00"):
        await verified(signed, trust)


async def test_the_command_holds_the_chain_against_a_file_and_what_redis_remembers(
    signed: LogHouse, redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "checkpoint"
    file.write_text((await signed.log.checkpoint(0)).note)
    trust = read_trust([KEY.verifier.vkey], [], [], [file])

    async def run(trust: Trust, url: str) -> int:
        return await asyncio.to_thread(run_verify, signed.database.url, {SEAL.key_id: SEAL}, False, trust, url)

    assert await run(trust, redis_url) == EXIT_INTACT
    assert f"signed up to {SIZE} entries" in capsys.readouterr().out
    await rewrite_unseen(signed)
    assert await run(Trust(), "") == EXIT_INTACT, "Postgres alone cannot tell"
    assert await run(trust, "") == EXIT_TAMPERED
    assert await run(Trust(), redis_url) == EXIT_TAMPERED
    assert OTHER in capsys.readouterr().out
    await signed.redis.hset(checkpoint_key(0), "root", "no hex")
    assert await run(Trust(), redis_url) == EXIT_INTACT
    assert "not held against what Redis remembers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("statement", "reason"),
    [("CREATE TABLE kept AS SELECT * FROM audit_entries; CREATE OR REPLACE VIEW audit_chain AS SELECT * FROM kept", "the view"),
     ("CREATE OR REPLACE VIEW audit_chain AS SELECT * FROM audit_entries WHERE seq >= 0", "the view audit_chain"),
     ("ALTER TABLE credit_accounts ENABLE ROW LEVEL SECURITY", "credit_accounts is no plain table"),
     ("ALTER TABLE audit_checkpoints RENAME TO c; CREATE VIEW audit_checkpoints AS SELECT * FROM c", "audit_checkpoints is no")],
)  # fmt: skip
async def test_rows_that_others_do_not_read_prove_nothing(ledger: LedgerDatabase, statement: str, reason: str) -> None:
    await ledger.session.execute(statement)

    report = await ledger.verify()

    assert report.first_bad is not None
    assert (report.first_bad.shard, report.first_bad.reason.startswith(reason)) == (None, True)


def test_a_view_is_read_as_every_release_of_postgres_writes_it() -> None:
    old = " SELECT e.shard,\n    e.seq\n   FROM e\nUNION ALL\n SELECT q.shard,\n    q.seq\n   FROM ledger_archive.q;"
    new = " SELECT shard,\n    seq\n   FROM e\nUNION ALL\n SELECT shard,\n    seq\n   FROM ledger_archive.q;"
    tables = {"e", "ledger_archive.q"}

    assert all(shows_all(text, ["shard", "seq"], tables) for text in (old, new))
    for other in ("seq + 1 AS seq", "shard"):
        assert not shows_all(new.replace("seq", other, 1), ["shard", "seq"], tables)
    assert not shows_all(new.replace(";", "\n  WHERE (seq > 5);"), ["shard", "seq"], tables)
    assert not shows_all(new, ["shard", "seq"], {"e"})
    assert not shows_all(new, ["shard", "seq"], {*tables, "ledger_archive.r"})


async def key_rows(ledger: LedgerDatabase) -> None:
    """Write a sealed chain of ten operations and two keys, the first of which has been replaced by the second."""
    row = "INSERT INTO api_keys (key_id, hash, shown, name, role, tenants, created_by, expires_at, replaced_by) VALUES "
    await ledger.session.execute(
        f"{row} ('key_{'B' * 16}', sha256('b'), 's', 'n', 'writer', '{{t}}', 'root', NULL, NULL), "
        f"('key_{'A' * 16}', sha256('a'), 's', 'n', 'writer', '{{t}}', 'root', '2026-01-02', 'key_{'B' * 16}')"
    )
    told = (
        "INSERT INTO pending_entries (at, kind, details) SELECT '2026-01-01', kind, details::json FROM (VALUES "
        '(\'key.rotate\', \'{"key_id":"key_\' || $1 || \'","new_key_id":"key_\' || $2 || \'","hash":"\' || $4 || \'",'
        '"overlap_seconds":86400}\'), '
        '(\'key.create\', \'{"key_id":"key_\' || $1 || \'","role":"writer","tenants":["t"],"hash":"\' || $3 || \'"}\')'
        ") AS v (kind, details)"
    )
    hashes = [
        row[0] for row in await ledger.session.fetch("SELECT encode(sha256(x), 'hex') FROM unnest('{a,b}'::bytea[]) x")
    ]
    await ledger.session.execute(told, "A" * 16, "B" * 16, *hashes)


async def test_keys_that_the_chain_tells_of_are_intact(ledger: LedgerDatabase) -> None:
    await key_rows(ledger)

    assert (await ledger.verify()).first_bad is None


@pytest.mark.parametrize(
    ("statement", "reason"),
    [("INSERT INTO api_keys (key_id, hash, shown, name, role, created_by) VALUES ('key_CCCCCCCCCCCCCCCC', sha256('c'), '', '', 'admin', '')",
      "of which the chain does not tell"),
     ("UPDATE api_keys SET role = 'admin' WHERE name = 'n' AND replaced_by IS NULL", "with other rights"),
     ("UPDATE api_keys SET tenants = NULL WHERE name = 'n' AND replaced_by IS NULL", "with other rights"),
     ("UPDATE api_keys SET hash = sha256('c') WHERE replaced_by IS NULL", "with another secret"),
     ("UPDATE api_keys SET expires_at = NULL WHERE replaced_by IS NOT NULL", "which ends at another time"),
     ("UPDATE api_keys SET expires_at = '2026-02-02' WHERE replaced_by IS NOT NULL", "which ends at another time"),
     ("UPDATE api_keys SET replaced_by = NULL WHERE replaced_by IS NOT NULL", "which is revoked or replaced otherwise"),
     ("UPDATE api_keys SET revoked_at = now() WHERE replaced_by IS NULL", "which is revoked or replaced otherwise"),
     ("UPDATE api_keys SET replaced_by = NULL; DELETE FROM api_keys WHERE key_id LIKE '%B'", "which is revoked or replaced")],
)  # fmt: skip
async def test_a_key_that_is_not_what_the_chain_tells_is_found(ledger: LedgerDatabase, statement: str, reason: str) -> None:
    await key_rows(ledger)
    await ledger.session.execute(statement)

    report = await ledger.verify()

    assert report.first_bad is not None
    assert reason in report.first_bad.reason
