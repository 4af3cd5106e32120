"""The tamper matrix: what somebody with write access changes, and what the verifier says about it.

One chain is enough for it: ten operations of one tenant. SPENT is in the middle, LAST at the end.
"""

from __future__ import annotations

import msgspec
import pytest

from app.audit.entry import ENTRY_PREFIX, RowSeal, entry_hash
from tests.audit.chain import LAST, SEAL, SPENT, Book, make_chain, ten_operations
from tests.audit.conftest import LedgerDatabase
from tests.audit.tamper import change, entry_of, record_of, replaced, rewrite, rewrite_from

OTHER_SEAL = RowSeal(b"a key that somebody else has made")


async def test_a_sound_ledger_is_intact(ledger: LedgerDatabase) -> None:
    report = await ledger.verify()

    assert report.ok
    assert report.first_bad is None
    assert (report.shards[0].entries, report.shards[0].head_seq, report.shards[0].first_bad) == (LAST + 1, LAST, None)
    assert (report.accounts, report.signatures_unchecked, report.trial_balance) == (1, 0, 0)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("amount", "99"), ("balance", "871"), ("reserved", "1"), ("version", "77"), ("type", "'topup'"),
        ("tenant_id", "'t2'"), ("transaction_id", "gen_random_uuid()"), ("at", "at + interval '1 ms'"),
        ("at", "at + interval '1 us'"),
    ],
)  # fmt: skip
async def test_a_changed_column_is_found(ledger: LedgerDatabase, column: str, value: str) -> None:
    await change(ledger.session, f"UPDATE audit_entries SET {column} = {value} WHERE seq = {SPENT}")

    seq, reason = await ledger.first_bad()

    assert seq == SPENT
    assert reason.startswith(f"column {column} is ")


async def test_text_that_moves_from_one_column_to_the_next_is_found(ledger: LedgerDatabase) -> None:
    await change(
        ledger.session,
        f"UPDATE audit_entries SET tenant_id = E't1\\nconsume', type = transaction_id::text, key_id = 'x' WHERE seq = {SPENT}",
    )

    seq, _ = await ledger.first_bad()

    assert seq == SPENT


async def test_entry_and_column_changed_without_the_hash_are_found(ledger: LedgerDatabase) -> None:
    entry = replaced(await entry_of(ledger.session, SPENT), '"amount":100,', '"amount":1,')
    await change(ledger.session, "UPDATE audit_entries SET entry = $2, amount = 1 WHERE seq = $1", SPENT, entry)

    assert await ledger.first_bad() == (SPENT, "the hash is not that of the entry")


async def test_entry_column_and_hash_changed_are_found_by_the_signature(ledger: LedgerDatabase) -> None:
    entry = replaced(await entry_of(ledger.session, SPENT), '"a \\"quoted\\" line\\nand é"', "null")
    await rewrite(ledger.session, SPENT, entry)

    assert await ledger.first_bad() == (SPENT, "the signature is not that of the hash")


async def test_entry_column_and_hash_changed_are_found_by_the_next_link_without_the_key(ledger: LedgerDatabase) -> None:
    entry = replaced(await entry_of(ledger.session, SPENT), '"a \\"quoted\\" line\\nand é"', "null")
    await rewrite(ledger.session, SPENT, entry)

    assert await ledger.first_bad(known=False) == (SPENT + 1, f"prev_hash is not the hash of entry {SPENT}")


async def test_the_last_row_rewritten_without_the_key_is_found_by_the_head(ledger: LedgerDatabase) -> None:
    entry = replaced(await entry_of(ledger.session, LAST), '"description":null', '"description":"gift"')
    await rewrite(ledger.session, LAST, entry, OTHER_SEAL)
    await change(ledger.session, "UPDATE audit_entries SET key_id = $2 WHERE seq = $1", LAST, OTHER_SEAL.key_id)

    assert await ledger.first_bad() == (LAST, "head_hash of ledger_shards is not the hash of the last entry")


async def test_the_last_row_and_the_head_rewritten_are_found_by_the_signature(ledger: LedgerDatabase) -> None:
    entry = replaced(await entry_of(ledger.session, LAST), '"description":null', '"description":"gift"')
    digest = await rewrite(ledger.session, LAST, entry, OTHER_SEAL)
    await change(ledger.session, "UPDATE ledger_shards SET head_hash = $1", digest)

    assert await ledger.first_bad() == (LAST, "the signature is not that of the hash")


async def test_a_false_amount_sealed_with_the_key_is_found_by_the_balances(ledger: LedgerDatabase) -> None:
    events = ten_operations().events
    prev_hash = await ledger.session.fetchval("SELECT prev_hash FROM audit_entries WHERE seq = $1", SPENT)
    events[SPENT].amount -= 90
    await rewrite_from(ledger.session, events, SPENT, prev_hash, SEAL)

    seq, reason = await ledger.first_bad()

    assert seq == SPENT
    assert reason == "the entry states balance 870 for tenant t1, after the entries before it balance is 960"


async def test_a_commit_that_releases_more_than_was_held_is_found(ledger: LedgerDatabase) -> None:
    events = ten_operations().events
    prev_hash = await ledger.session.fetchval("SELECT prev_hash FROM audit_entries WHERE seq = 3")
    events[3].details = '{"released":19}'
    await rewrite_from(ledger.session, events, 3, prev_hash, SEAL)

    seq, reason = await ledger.first_bad()

    assert seq == 3
    assert "holds 50, not 30 and 19" in reason


async def test_a_refund_above_what_was_consumed_is_found(ledger: LedgerDatabase) -> None:
    events = ten_operations().events
    prev_hash = await ledger.session.fetchval("SELECT prev_hash FROM audit_entries WHERE seq = 6")
    for event in events[6:]:
        event.balance += 61
    events[6].amount += 61
    await rewrite_from(ledger.session, events, 6, prev_hash, SEAL)

    seq, reason = await ledger.first_bad()

    assert seq == 6
    assert reason.endswith("consumed 100, refunded are 101")


async def test_an_unknown_event_type_is_found(ledger: LedgerDatabase) -> None:
    entry = replaced(await entry_of(ledger.session, LAST), '"type":"consume"', '"type":"confiscate"')
    digest = await rewrite(ledger.session, LAST, entry, SEAL)
    await change(ledger.session, "UPDATE audit_entries SET type = 'confiscate' WHERE seq = $1", LAST)
    await change(ledger.session, "UPDATE ledger_shards SET head_hash = $1", digest)

    assert await ledger.first_bad() == (LAST, "the event type 'confiscate' is unknown")


async def test_another_account_on_the_other_side_is_found(ledger: LedgerDatabase) -> None:
    entry = replaced(await entry_of(ledger.session, LAST), '"credit":"system:revenue"', '"credit":"system:funding"')
    digest = await rewrite(ledger.session, LAST, entry, SEAL)
    await change(ledger.session, "UPDATE ledger_shards SET head_hash = $1", digest)

    assert await ledger.first_bad() == (LAST, "a consume of tenant t1 does not move from tenant:t1 to system:funding")


async def test_a_cut_tail_is_found(ledger: LedgerDatabase) -> None:
    await ledger.session.execute("DELETE FROM audit_entries WHERE seq > 6")

    assert await ledger.first_bad() == (7, "head says 9, chain ends at 6")


async def test_an_emptied_chain_is_found(ledger: LedgerDatabase) -> None:
    await ledger.session.execute("TRUNCATE audit_entries")

    assert await ledger.first_bad() == (0, "head says 9, chain ends at -1")


async def test_a_head_that_stays_behind_the_chain_is_found(ledger: LedgerDatabase) -> None:
    await change(ledger.session, "UPDATE ledger_shards SET head_seq = 8")

    assert await ledger.first_bad() == (9, "head says 8, chain ends at 9")


async def test_a_removed_middle_row_is_found(ledger: LedgerDatabase) -> None:
    await change(ledger.session, f"DELETE FROM audit_entries WHERE seq = {SPENT}")

    assert await ledger.first_bad() == (SPENT, f"the entry is missing, the next one is seq {SPENT + 1}")


async def test_a_removed_first_row_is_found(ledger: LedgerDatabase) -> None:
    await change(ledger.session, "DELETE FROM audit_entries WHERE seq = 0")

    assert await ledger.first_bad() == (0, "the entry is missing, the next one is seq 1")


async def test_swapped_rows_are_found(ledger: LedgerDatabase) -> None:
    await ledger.session.execute("UPDATE audit_entries SET seq = 1009 - seq WHERE seq IN (4, 5)")
    await ledger.session.execute("UPDATE audit_entries SET seq = seq - 1000 WHERE seq >= 1000")

    assert await ledger.first_bad() == (4, "the entry says that it is seq 5 of shard 0")


async def test_rows_renumbered_over_a_removed_one_are_found(ledger: LedgerDatabase) -> None:
    await ledger.session.execute("DELETE FROM audit_entries WHERE seq = 5")
    await ledger.session.execute("UPDATE audit_entries SET seq = seq - 1 WHERE seq > 5")
    await ledger.session.execute("UPDATE ledger_shards SET head_seq = 8")

    assert await ledger.first_bad() == (5, "the entry says that it is seq 6 of shard 0")


async def test_a_row_of_another_chain_is_found(database: LedgerDatabase) -> None:
    other = Book(shard=1)
    other.account("t2")
    for amount in (500, 1, 2, 100):
        other.topup("t2", amount)
    await make_chain(database.session, [*ten_operations().events, *other.events], shard_count=2)
    await change(database.session, f"DELETE FROM audit_entries WHERE shard = 0 AND seq = {SPENT}")
    await change(database.session, f"UPDATE audit_entries SET shard = 0 WHERE shard = 1 AND seq = {SPENT}")

    assert await database.first_bad() == (SPENT, f"the entry says that it is seq {SPENT} of shard 1")
    assert await database.first_bad_of(1) == (SPENT, "head says 4, chain ends at 3")


async def test_a_chain_of_another_ledger_is_found(database: LedgerDatabase) -> None:
    await make_chain(database.session, ten_operations().events)
    await change(database.session, "UPDATE ledger SET origin = 'shieldx/of-somebody-else'")

    assert await database.first_bad() == (0, "prev_hash is not the genesis hash of this ledger and shard")


async def test_a_row_that_stands_twice_is_found(ledger: LedgerDatabase) -> None:
    await ledger.session.execute(
        "INSERT INTO audit_entries SELECT shard, seq, at + interval '1 s', transaction_id, tenant_id, type, amount, balance, "
        "reserved, version, entry, hash, prev_hash, signature, key_id FROM audit_entries WHERE seq = 5"
    )

    assert await ledger.first_bad() == (5, "the seq stands twice")


async def test_an_entry_in_no_shard_of_the_ledger_is_found(ledger: LedgerDatabase) -> None:
    await ledger.session.execute(
        "INSERT INTO audit_entries SELECT 3, seq, at, transaction_id, tenant_id, type, amount, balance, "
        "reserved, version, entry, hash, prev_hash, signature, key_id FROM audit_entries WHERE seq = 5"
    )

    report = await ledger.verify()

    assert report.first_bad is not None
    assert (report.first_bad.shard, report.first_bad.seq) == (None, 5)
    assert report.first_bad.reason == "an entry stands in shard 3, the ledger has 1 shards"


def _reordered(entry: bytes) -> bytes:
    record = record_of(entry)
    return ENTRY_PREFIX + msgspec.json.encode({"balance": record.pop("balance"), **record})


OTHER_FORMS = {
    "trailing space": lambda entry: entry + b" ",
    "trailing newline": lambda entry: entry + b"\n",
    "space after a colon": lambda entry: replaced(entry, '"balance":', '"balance": '),
    "duplicate key": lambda entry: replaced(entry, '"schema":1', '"schema":2,"schema":1'),
    "reordered keys": _reordered,
    "escaped letter": lambda entry: replaced(entry, "é", "\\u00e9"),
    "escaped slash form": lambda entry: replaced(entry, "\\n", "\\u000a"),
    "minus zero": lambda entry: replaced(entry, '"reserved":0', '"reserved":-0'),
}


@pytest.mark.parametrize("form", OTHER_FORMS)
async def test_another_form_of_the_same_record_is_found(ledger: LedgerDatabase, form: str) -> None:
    entry = OTHER_FORMS[form](await entry_of(ledger.session, SPENT))
    await rewrite(ledger.session, SPENT, entry, SEAL)

    assert await ledger.first_bad() == (SPENT, "the entry is not in canonical form")


NO_RECORDS = {
    "another prefix": lambda entry: entry.replace(b"audit/v1", b"audit/v2"),
    "a float": lambda entry: replaced(entry, '"amount":100,', '"amount":100.0,'),
    "a text for a number": lambda entry: replaced(entry, '"amount":100,', '"amount":"100",'),
    "an unknown key": lambda entry: replaced(entry, '"schema":1', '"sachem":1,"schema":1'),
    "a missing key": lambda entry: replaced(entry, '"schema":1,', ""),
    "not UTF-8": lambda entry: entry.replace("é".encode(), b"\xff\xff"),
    "another schema": lambda entry: replaced(entry, '"schema":1', '"schema":2'),
    "nothing": lambda _: b"",
}


@pytest.mark.parametrize("form", NO_RECORDS)
async def test_what_is_no_record_is_found(ledger: LedgerDatabase, form: str) -> None:
    entry = NO_RECORDS[form](await entry_of(ledger.session, SPENT))
    await rewrite(ledger.session, SPENT, entry, SEAL)

    assert await ledger.first_bad() == (SPENT, "the entry is not a record of shieldx-audit/v1")


async def test_an_edited_signature_is_found(ledger: LedgerDatabase) -> None:
    await change(ledger.session, "UPDATE audit_entries SET signature = set_byte(signature, 0, 1 + get_byte(signature, 0) % 255) "
                 f"WHERE seq = {SPENT}")  # fmt: skip

    assert await ledger.first_bad() == (SPENT, "the signature is not that of the hash")


async def test_an_edited_prev_hash_is_found(ledger: LedgerDatabase) -> None:
    await change(ledger.session, "UPDATE audit_entries SET prev_hash = $2 WHERE seq = $1", SPENT, entry_hash(b""))

    seq, reason = await ledger.first_bad()

    assert seq == SPENT
    assert reason.startswith("column prev_hash is ")


@pytest.mark.parametrize("column", ["hash", "signature", "key_id", "amount", "type"])
async def test_a_row_with_a_missing_column_is_found(ledger: LedgerDatabase, column: str) -> None:
    await ledger.session.execute(f"ALTER TABLE audit_entries ALTER COLUMN {column} DROP NOT NULL")
    await change(ledger.session, f"UPDATE audit_entries SET {column} = NULL WHERE seq = {SPENT}")

    seq, _ = await ledger.first_bad()

    assert seq == SPENT


async def test_a_short_hash_is_found(ledger: LedgerDatabase) -> None:
    await ledger.session.execute("ALTER TABLE audit_entries DROP CONSTRAINT audit_entries_signature_check")
    await change(ledger.session, f"UPDATE audit_entries SET signature = '' WHERE seq = {SPENT}")

    seq, _ = await ledger.first_bad()

    assert seq == SPENT
