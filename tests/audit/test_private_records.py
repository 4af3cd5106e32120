"""The verifier tells three states of private records apart: verified, erased with a tombstone, missing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from app.audit.checkpoint import Checkpoint
from app.audit.entry import Event, entry_bytes
from app.audit.increment import verify_since
from app.audit.report import PrivateReport, Report, report_text
from app.audit.trust import Trust
from app.audit.verify import verify_ledger
from app.clock import time_text
from app.credits.payment import details_of
from app.db.postgres import open_pool
from app.privacy.envelope import MasterKeys
from app.privacy.payment import Payment
from app.privacy.store import PrivateStore
from tests.audit.chain import STARTED_MS, Book, make_chain
from tests.audit.conftest import LedgerDatabase
from tests.audit.log_house import LOG_ORIGIN, LogHouse
from tests.audit.naive_tree import root_of
from tests.audit.tamper import change

PAYMENT = Payment("4111111111111111", "John Doe", "12/27")
LOST = "the private record of this entry is missing or another, and no tombstone says that it was erased"
TWO_DAYS_MS = 2 * 86_400_000  # after which a record may be past its time
FIRST, SECOND = 1, 3  # seqs of the two top-ups
ENTRY = "00000000-0000-4000-8000-00000000000e"  # the id of an erasure, which its tombstone names
ENTERED = "INSERT INTO private_erasures VALUES ($1::text::uuid, $2, $3, now(), now())"


async def no_record(_kind: str, _details: dict[str, Any]) -> None:
    raise AssertionError("nothing is read here")


@pytest.fixture
async def store(database: LedgerDatabase) -> AsyncIterator[PrivateStore]:
    pool = await open_pool(database.url, 2)
    yield PrivateStore(pool, MasterKeys([bytes(range(32))]), no_record, lambda: STARTED_MS)
    pool.terminate()


async def paid(store: PrivateStore) -> list[Event]:
    """Two tenants with a top-up each whose payment is kept, and some other operations."""
    book = Book()
    events = []
    for tenant in ("t1", "t2"):
        book.account(tenant)
        event = book.topup(tenant, 100)
        kept = await store.keep(event.idempotency or "", tenant, tenant, PAYMENT)
        events += [book.events[-2], replace(event, details=details_of(kept))]
    book.consume("t1", 7)
    return [*events, book.events[-1]]


def with_tombstone(events: list[Event], kind: str, details: dict[str, Any]) -> list[Event]:
    last = events[-1]
    text = orjson.dumps(details, option=orjson.OPT_SORT_KEYS).decode()
    return [*events, Event(
        0, 1, last.seq + 1, last.at_ms + TWO_DAYS_MS, kind, "", "system:none", "system:none", 0, 0, 0, 0,
        "01a201e0-3c7c-7000-adad-e9f95266ab00", "k", "f", None, None, None, text,
    )]  # fmt: skip


async def test_records_that_are_there_are_verified(database: LedgerDatabase, store: PrivateStore) -> None:
    await make_chain(database.session, await paid(store))

    for processes in (1, 2):
        report = await database.verify(processes=processes, range_entries=2)

        assert report.ok
        assert report.private == PrivateReport(verified=2)
    assert "private records: 2 verified, 0 erased with a tombstone, 0 missing" in report_text(report)


async def test_an_erased_subject_is_told_from_one_that_is_there(database: LedgerDatabase, store: PrivateStore) -> None:
    events = await paid(store)
    erasure = await store.erase("t1", request_id="q", basis="gdpr-17")
    assert erasure is not None
    await make_chain(database.session, with_tombstone(events, erasure.kind, orjson.loads(erasure.tombstone)))

    report = await database.verify()

    assert report.ok
    assert report.private == PrivateReport(verified=1, erased=1)


async def test_what_was_erased_is_no_fault_while_its_tombstone_waits_for_the_chain(
    database: LedgerDatabase, store: PrivateStore
) -> None:
    await make_chain(database.session, await paid(store))
    assert await store.erase("t1", request_id="q", basis="gdpr-17") is not None

    report = await database.verify()

    assert report.ok
    assert report.private == PrivateReport(verified=1, erased=1)


@pytest.mark.parametrize(("before_ms", "ok"), [(STARTED_MS + 60_000, True), (STARTED_MS - 30 * 3_600_000, False)])
async def test_records_whose_time_was_over_are_erased_and_no_younger_ones(
    database: LedgerDatabase, store: PrivateStore, before_ms: int, ok: bool
) -> None:
    details = {"before": time_text(before_ms), "class": "payment", "entry_id": ENTRY, "records": 2}
    await make_chain(database.session, with_tombstone(await paid(store), "privacy.retention", details))
    await database.session.execute(ENTERED, ENTRY, "privacy.retention", orjson.dumps(details).decode())
    await database.session.execute("DELETE FROM private_records")

    report = await database.verify()

    assert (report.ok, report.private) == (ok, PrivateReport(erased=2) if ok else PrivateReport(missing=2))


@pytest.mark.parametrize(
    "statement",
    ["DELETE FROM private_records WHERE tenant_id = 't2'", "UPDATE private_records SET commitment = sha256('x') WHERE tenant_id = 't2'",
     "UPDATE private_records SET record_id = 'other' WHERE tenant_id = 't2'",
     "ALTER TABLE private_records DROP CONSTRAINT private_records_subject_dek_id_fkey; DELETE FROM private_keys WHERE subject = 't2'",
     "DELETE FROM private_records WHERE tenant_id = 't2'; INSERT INTO private_erasures VALUES (gen_random_uuid(), 'privacy.erasure', '{}', now())",
     "DELETE FROM private_records WHERE tenant_id = 't2'; INSERT INTO private_erasures VALUES (gen_random_uuid(), 'privacy.erasure', '[', now())",
     "DELETE FROM private_records WHERE tenant_id = 't2'; INSERT INTO private_erasures SELECT gen_random_uuid(), 'privacy.erasure', '{\"keys\":[\"' || encode(dek_id, 'hex') || '\"]}', now(), now() FROM private_keys"],
)  # fmt: skip
async def test_a_record_that_goes_without_a_tombstone_in_the_chain_is_missing(
    database: LedgerDatabase, store: PrivateStore, statement: str
) -> None:
    await make_chain(database.session, await paid(store))
    await database.session.execute(statement)

    report = await database.verify()

    assert await database.first_bad() == (SECOND, LOST)
    assert report.private == PrivateReport(verified=1, missing=1)


async def test_an_entry_that_names_no_readable_commitment_is_missing(database: LedgerDatabase, store: PrivateStore) -> None:
    events = await paid(store)
    events[FIRST] = replace(events[FIRST], details='{"payment":"zz"}')
    await make_chain(database.session, events)

    assert await database.first_bad() == (FIRST, LOST)


async def test_the_server_cannot_hide_a_loss_with_a_tombstone_of_another_kind(
    database: LedgerDatabase, store: PrivateStore
) -> None:
    details = {"before": "yesterday", "class": "payment", "keys": "all"}
    events = with_tombstone(await paid(store), "privacy.retention", details)
    await make_chain(database.session, events)
    await database.session.execute("DELETE FROM private_records")

    assert (await database.verify()).private == PrivateReport(missing=2)


async def test_a_tombstone_of_records_whose_time_cannot_have_been_over_is_no_evidence(
    database: LedgerDatabase, store: PrivateStore
) -> None:
    details = {"before": time_text(STARTED_MS + TWO_DAYS_MS), "class": "payment", "entry_id": ENTRY, "records": 2}
    events = with_tombstone(await paid(store), "privacy.retention", details)
    await make_chain(database.session, events)
    await database.session.execute(ENTERED, ENTRY, "privacy.retention", orjson.dumps(details).decode())
    alone = await database.first_bad()
    await database.session.execute("DELETE FROM private_records")

    both = await database.first_bad()

    assert alone == (events[-1].seq, "the tombstone says that records were past their time which cannot have been")
    assert both == (FIRST, LOST)


async def test_more_records_than_tombstones_tell_of_cannot_go(database: LedgerDatabase, store: PrivateStore) -> None:
    details = {"before": time_text(STARTED_MS + 60_000), "class": "payment", "records": 1}
    await make_chain(database.session, with_tombstone(await paid(store), "privacy.retention", details))
    await database.session.execute("DELETE FROM private_records")

    seq, reason = await database.first_bad()

    assert (seq, reason) == (SECOND, "more private records are gone than the 1 of which tombstones tell; this is one")


async def twice(database: LedgerDatabase, store: PrivateStore, kind: str) -> list[Event]:
    """A payment that was sent again under its key, a day and more later; what was kept of it is destroyed."""
    book = Book()
    book.account("t1")
    first = book.topup("t1", 100)
    book.at_ms += TWO_DAYS_MS
    again = book.topup("t1", 100)
    details = details_of(await store.keep(first.idempotency or "", "t1", "t1", PAYMENT))
    erasure = await store.erase("t1", request_id="q", basis="gdpr-17")
    assert erasure is not None
    before = time_text(first.at_ms + 3_600_000)
    past = {"before": before, "class": "payment", "entry_id": ENTRY, "records": 1}
    told = orjson.loads(erasure.tombstone) if kind == erasure.kind else past
    await database.session.execute("DELETE FROM private_erasures")
    await database.session.execute(ENTERED, told["entry_id"], kind, orjson.dumps(told).decode())
    events = [
        book.events[0],
        replace(first, details=details),
        replace(again, details=details, idempotency=first.idempotency),
    ]
    return with_tombstone(events, kind, told)


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("DELETE FROM private_erasures", f"private_erasures has no row for erasure {ENTRY}, which this entry gives"),
        ("UPDATE private_erasures SET tombstone = replace(tombstone, '\"records\":1', '\"records\":2')",
         f"private_erasures has another erasure {ENTRY} than this entry gives"),
        ("INSERT INTO private_erasures VALUES ('00000000-0000-4000-8000-00000000000f', 'privacy.erasure', '{}', now(), now())",
         "private_erasures has erasure 00000000-0000-4000-8000-00000000000f as entered, the chain has it not"),
        ("UPDATE private_erasures SET tombstone = 'garbage', entered_at = NULL", "private_erasures has a row that cannot be read"),
    ],
)  # fmt: skip
async def test_an_erasure_that_is_not_what_its_tombstone_says_is_found(
    database: LedgerDatabase, store: PrivateStore, statement: str, reason: str
) -> None:
    await make_chain(database.session, await twice(database, store, "privacy.retention"))
    sound = await database.verify()
    await change(database.session, statement)

    report = await database.verify()

    assert sound.ok
    reasons = [one.first_bad.reason for one in report.shards if one.first_bad] + [
        report.first_bad and report.first_bad.reason
    ]
    assert any(found and found.startswith(reason) for found in reasons)


@pytest.mark.parametrize("kind", ["privacy.erasure", "privacy.retention"])
async def test_a_record_of_which_two_entries_speak_is_destroyed_once(
    database: LedgerDatabase, store: PrivateStore, kind: str
) -> None:
    await make_chain(database.session, await twice(database, store, kind))

    report = await database.verify()

    assert (report.ok, report.first_bad) == (True, None)
    assert report.private == PrivateReport(erased=2)


async def since(house: LogHouse, size: int) -> Report:
    trust = Trust(checkpoints={LOG_ORIGIN: Checkpoint(LOG_ORIGIN, size, root_of(house.leaves[:size]))})
    return await verify_since(house.database.url, seals={}, progress=lambda *_: None, trust=trust)


@pytest.mark.parametrize("kind", ["privacy.erasure", "privacy.retention"])
async def test_the_first_entry_of_a_record_may_stand_below_a_trusted_checkpoint(
    house: LogHouse, store: PrivateStore, kind: str
) -> None:
    await house.write(await twice(house.database, store, kind))

    reports = [await since(house, size) for size in (1, 2)]

    assert [(report.first_bad, report.private.erased) for report in reports] == [(None, 2), (None, 1)]


async def test_nobody_puts_an_earlier_entry_of_a_record_below_a_trusted_checkpoint(
    house: LogHouse, store: PrivateStore
) -> None:
    events = await twice(house.database, store, "privacy.retention")
    await house.write([events[0], replace(events[1], details=None), *events[2:]])
    honest = await since(house, 2)
    await change(
        house.database.session, "UPDATE audit_entries SET entry = $1 WHERE seq = 1", entry_bytes(events[1], house.leaves[0])
    )

    forged = await since(house, 2)

    assert [report.first_bad and report.first_bad.reason for report in (honest, forged)] == [LOST, LOST]


@pytest.mark.parametrize("kind", ["privacy.erasure", "privacy.retention"])
async def test_nobody_puts_a_tombstone_below_a_trusted_checkpoint(house: LogHouse, store: PrivateStore, kind: str) -> None:
    *events, spent, tombstone = await twice(house.database, store, kind)
    tombstone, spent = replace(tombstone, seq=2), replace(spent, seq=3)
    await house.write([*events, replace(tombstone, details="{}"), spent])
    honest = await since(house, 3)
    await change(
        house.database.session, "UPDATE audit_entries SET entry = $1 WHERE seq = 2", entry_bytes(tombstone, house.leaves[1])
    )

    forged = await since(house, 3)
    await change(house.database.session, "UPDATE audit_entries SET entry = 'garbage' WHERE seq = 2")
    garbled = await since(house, 3)

    assert [report.first_bad and report.first_bad.reason for report in (honest, forged, garbled)] == [LOST] * 3


@pytest.mark.parametrize("kind", ["privacy.erasure", "privacy.retention"])
async def test_a_tombstone_may_stand_below_a_trusted_checkpoint(house: LogHouse, store: PrivateStore, kind: str) -> None:
    *events, spent, tombstone = await twice(house.database, store, kind)
    await house.write([*events, replace(tombstone, seq=2), replace(spent, seq=3)])

    report = await since(house, 3)

    assert (report.first_bad, report.private.erased) == (None, 1)


@pytest.mark.parametrize("kind", ["privacy.erasure", "privacy.retention"])
async def test_an_id_of_a_destroyed_record_may_be_given_again(house: LogHouse, store: PrivateStore, kind: str) -> None:
    """A client uses an idempotency key again, after the payment that had it first was erased or past its time."""
    events = await twice(house.database, store, kind)
    spent, tombstone = events[2:]
    kept = await store.keep(spent.idempotency or "", "t1", "t1", PAYMENT)
    last = replace(
        spent, seq=tombstone.seq + 1, at_ms=tombstone.at_ms + 1, balance=spent.balance + 100, version=spent.version + 1,
        transaction_id="01a201e0-3c7c-7000-adad-e9f95266ab01", details=details_of(kept),
    )  # fmt: skip
    await house.write([*events, last])

    whole, part = await house.database.verify(), await since(house, 1)
    await house.database.session.execute("DELETE FROM private_records")
    taken = await house.database.verify()

    assert [(report.first_bad, report.private) for report in (whole, part)] == [(None, PrivateReport(1, 2))] * 2
    assert taken.first_bad is not None
    assert (taken.first_bad.seq, taken.first_bad.reason) == (4, LOST)


CLOSED = "cannot be opened: a value was changed, or is that of another record"
FLIPPED = "set_byte({0}, length({0}) - 1, get_byte({0}, length({0}) - 1) # 1)"


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        (f"UPDATE private_keys SET wrapped = {FLIPPED.format('wrapped')} WHERE subject = 't2'", "cannot be unwrapped"),
        ("UPDATE private_keys SET kek_id = '\\x0000000000000000' WHERE subject = 't2'",
         "is wrapped by a master key that was not given"),
        (f"UPDATE private_records SET salt = {FLIPPED.format('salt')} WHERE subject = 't2'", CLOSED),
        (f"UPDATE private_records SET sealed = {FLIPPED.format('sealed')} WHERE subject = 't2'", CLOSED),
        ("UPDATE private_records SET tenant_id = 't1' WHERE subject = 't2'", CLOSED),
        ("UPDATE private_records SET class = 'other' WHERE subject = 't2'", "does not hold what its commitment says"),
        ("UPDATE private_records SET shown = '{\"card_number\":\"****-****-****-9999\"}' WHERE subject = 't2'",
         "shows another masked form than that of what it holds"),
    ],
)  # fmt: skip
async def test_the_master_key_finds_private_data_that_was_garbled(
    database: LedgerDatabase, store: PrivateStore, statement: str, reason: str
) -> None:
    await make_chain(database.session, await paid(store))
    masters = MasterKeys([bytes(range(32))])
    sound = await verify_ledger(database.url, seals={}, progress=lambda *_: None, masters=masters)
    await change(database.session, statement)

    report = await verify_ledger(database.url, seals={}, progress=lambda *_: None, masters=masters)

    assert sound.ok
    bad = report.shards[0].first_bad
    assert bad is not None
    assert bad.seq == SECOND
    assert bad.reason.endswith(reason)
    assert "4111111111111111" not in report_text(report)


async def test_a_private_record_of_no_entry_is_opened_too(database: LedgerDatabase, store: PrivateStore) -> None:
    await make_chain(database.session, await paid(store))
    await change(
        database.session,
        "INSERT INTO private_records SELECT 'copied', class, tenant_id, subject, dek_id, commitment, shown, salt, sealed, "
        "created_at FROM private_records WHERE subject = 't1'",
    )

    report = await verify_ledger(database.url, seals={}, progress=lambda *_: None, masters=MasterKeys([bytes(range(32))]))

    assert report.first_bad is not None
    assert (report.first_bad.shard, report.first_bad.reason) == (None, f"private record copied {CLOSED}")
