"""The verifier on sound ledgers, over ranges and processes, beside a writer, and as a command."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import asyncpg
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.audit.command import run_verify
from app.audit.entry import ENTRY_PREFIX, Event, Record, RowSeal, entry_bytes
from app.audit.report import EXIT_INTACT, EXIT_TAMPERED, EXIT_UNCHECKED
from app.audit.verify import verify_ledger
from tests.audit.chain import SEAL, Book, make_chain, mixed_events
from tests.audit.conftest import LedgerDatabase
from tests.audit.tamper import change
from tests.stores import PrivatePostgres


def two_shards() -> list[Event]:
    """Every kind of event, with transfers between the shards: one settled, one given up, one still open."""
    here, there = Book(0), Book(1)
    for book, name in ((here, "a"), (there, "b")):
        book.account(name)
        book.topup(name, 1_000)
        book.account(name + "2")
    out, into = here.prepare("a", -10), there.prepare("b", 10)
    here.note("deployment", '{"experiment":"ranking","variant":"b"}')
    here.settle(out)
    there.settle(into)
    here.cancel(here.prepare("a", -5))
    there.cancel(there.prepare("b", 5))
    here.prepare("a", -3)
    there.prepare("b", 3)
    here.transfer([("a", -7), ("a2", 4), ("a2", 3)])
    here.release("abort", here.reserve("a", 1))
    here.release("expire", here.reserve("a", 1))
    there.commit(there.reserve("b", 9), 9)
    there.update("b")
    there.generation += 1
    there.refund(there.consume("b", 8), 8)
    return here.events + there.events


@pytest.mark.parametrize("range_entries", [1, 2, 3, 7, 50_000])
async def test_ranges_of_any_size_give_the_same_result(database: LedgerDatabase, range_entries: int) -> None:
    events = two_shards()
    await make_chain(database.session, events, shard_count=2)

    report = await database.verify(range_entries=range_entries, processes=1)

    assert report.first_bad is None
    assert [shard.entries for shard in report.shards] == [sum(e.shard == shard for e in events) for shard in (0, 1)]
    assert (report.accounts, report.trial_balance, report.signatures_unchecked) == (4, 0, 0)


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_long_mixed_chain_is_intact_in_several_processes(database: LedgerDatabase, seed: int) -> None:
    events = mixed_events(1_500, 9, seed)
    await make_chain(database.session, events)

    apart = await database.verify(range_entries=256, processes=2)
    together = await database.verify(processes=1)

    assert apart.first_bad is None
    assert apart.shards == together.shards
    assert apart.shards[0].entries == len(events)
    assert (apart.accounts, apart.trial_balance) == (9, 0)


@pytest.mark.parametrize("seq", [255, 256, 257, 1_100])
async def test_the_first_bad_entry_is_the_same_for_any_ranges_and_processes(database: LedgerDatabase, seq: int) -> None:
    await make_chain(database.session, mixed_events(1_200, 4))
    for bad in (seq, 1_190):
        await change(database.session, f"UPDATE audit_entries SET amount = amount + 1 WHERE seq = {bad}")

    reports = [
        await database.verify(range_entries=256, processes=2),
        await database.verify(range_entries=256, processes=1),
        await database.verify(processes=1),
    ]

    found = [report.shards[0] for report in reports]
    assert [(shard.entries, shard.first_bad and shard.first_bad.seq) for shard in found] == [(seq, seq)] * 3
    assert found[0].first_bad == found[1].first_bad == found[2].first_bad


def _transfer_without_its_last_leg(book: Book) -> None:
    book.events.pop()
    book.update("a")


def _hold_spent_twice(book: Book) -> None:
    hold = book.reserve("a", 5)
    book.reserve("a", 5)
    book.commit(hold, 5)
    book.commit(hold, 5)


def _leg_settled_twice(book: Book) -> None:
    into = book.prepare("a", 2)
    book.prepare("a", 2)
    book.settle(into)
    book.settle(into)


def _topup_refunded(book: Book) -> None:
    book.refund(book.topup("a", 5), 5)


def _tenant_without_account(book: Book) -> None:
    book.state["x"] = [0, 0, 0, 1]
    book.topup("x", 5)


def _tenant_that_begins_with_credits(book: Book) -> None:
    book.state["x"] = [0, 0, 0, 0]
    book.topup("x", 5)


def _account_opened_twice(book: Book) -> None:
    book.account("a")


def _false_balance(book: Book) -> None:
    book.consume("a2", 4)
    book.events[-1].balance += 1


def _earlier_generation(book: Book) -> None:
    book.generation = 0
    book.update("a")


def _earlier_time(book: Book) -> None:
    book.at_ms -= 60_000
    book.update("a")


FALSE_HISTORIES = {
    "a transfer without its last leg": (_transfer_without_its_last_leg, "ends after leg 2 of 3"),
    "a hold spent twice": (_hold_spent_twice, "is not open at this commit"),
    "a leg settled twice": (_leg_settled_twice, "is not open at this settle_in"),
    "a top-up refunded": (_topup_refunded, "no earlier consume or commit"),
    "a tenant without account": (_tenant_without_account, "tenant x has no account before this entry"),
    "a tenant that begins with credits": (_tenant_that_begins_with_credits, "not possible after a topup"),
    "an account opened twice": (_account_opened_twice, "tenant a"),
    "a false balance": (_false_balance, "tenant a2"),
    "an earlier generation": (_earlier_generation, "generation 0 comes after generation 1"),
    "an earlier time": (_earlier_time, "its time is before that of the entry before it"),
}


@pytest.mark.parametrize("range_entries", [1, 4, 50_000])
@pytest.mark.parametrize("history", FALSE_HISTORIES)
async def test_a_well_sealed_chain_with_a_false_history_is_found(
    database: LedgerDatabase, history: str, range_entries: int
) -> None:
    book = Book()
    book.account("a")
    book.account("a2")
    book.topup("a", 1_000)
    book.transfer([("a", -7), ("a2", 4), ("a2", 3)])
    falsify, reason = FALSE_HISTORIES[history]
    falsify(book)
    await make_chain(database.session, book.events)

    report = await database.verify(range_entries=range_entries, processes=1)

    assert report.first_bad is not None
    assert reason in report.first_bad.reason


async def test_what_is_written_during_a_verification_changes_nothing_for_it(database: LedgerDatabase) -> None:
    await make_chain(database.session, mixed_events(400, 3))
    done: list[int] = []

    async def cut_the_tail() -> None:
        other = await asyncpg.connect(database.url)
        await other.execute("DELETE FROM audit_entries WHERE seq > 200")
        await other.close()

    def progress(count: int, _total: int) -> None:
        if not done:
            with ThreadPoolExecutor(1) as thread:
                thread.submit(asyncio.run, cut_the_tail()).result()
        done.append(count)

    during = await verify_ledger(database.url, seals={SEAL.key_id: SEAL}, progress=progress, processes=1, range_entries=100)
    after = await database.verify()

    assert len(done) > 1
    assert during.ok
    assert after.first_bad is not None
    assert after.first_bad.seq == 201


async def test_the_role_of_the_server_may_verify(database: LedgerDatabase) -> None:
    await make_chain(database.session, mixed_events(50, 2))
    await database.session.execute("ALTER ROLE shieldx_app LOGIN")

    report = await verify_ledger(
        database.url.replace("postgres@", "shieldx_app@"), seals={}, progress=lambda _done, _total: None
    )

    assert report.ok


async def test_entries_under_an_unknown_key_are_counted_and_not_a_fault(database: LedgerDatabase) -> None:
    events = mixed_events(60, 2)
    await make_chain(database.session, events)
    later = RowSeal(b"the key after the first rotation")
    rows = await database.session.fetch("SELECT seq, hash FROM audit_entries WHERE seq >= 40")
    for row in rows:
        await change(database.session, "UPDATE audit_entries SET key_id = $2, signature = $3 WHERE seq = $1",
                     row["seq"], later.key_id, later.sign(row["hash"]))  # fmt: skip

    old_only = await database.verify(range_entries=7)
    both = await verify_ledger(
        database.url, seals={SEAL.key_id: SEAL, later.key_id: later}, progress=lambda _done, _total: None
    )

    assert old_only.ok
    assert both.ok
    assert (old_only.signatures_unchecked, both.signatures_unchecked) == (len(rows), 0)


async def test_progress_counts_up_to_all_entries(database: LedgerDatabase) -> None:
    events = two_shards()
    await make_chain(database.session, events, shard_count=2)
    seen: list[tuple[int, int]] = []

    await verify_ledger(
        database.url, seals={}, progress=lambda done, total: seen.append((done, total)), processes=1, range_entries=5
    )

    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (len(events), len(events))


async def _run(url: str, *, as_json: bool = False) -> int:
    return await asyncio.to_thread(run_verify, url, {SEAL.key_id: SEAL}, as_json)


async def test_the_command_exits_0_and_says_intact(database: LedgerDatabase, capsys: pytest.CaptureFixture[str]) -> None:
    await make_chain(database.session, mixed_events(50, 2))

    assert await _run(database.url) == EXIT_INTACT

    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].startswith("intact: ")
    assert printed.err == ""


async def test_the_command_exits_1_and_names_shard_seq_and_reason(
    database: LedgerDatabase, capsys: pytest.CaptureFixture[str]
) -> None:
    await make_chain(database.session, mixed_events(50, 2))
    await change(database.session, "DELETE FROM audit_entries WHERE seq = 20")

    assert await _run(database.url) == EXIT_TAMPERED

    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "TAMPERED: shard 0 at seq 20: the entry is missing, the next one is seq 21"


async def test_json_is_one_object_with_the_documented_fields(
    database: LedgerDatabase, capsys: pytest.CaptureFixture[str]
) -> None:
    await make_chain(database.session, mixed_events(50, 2))
    await change(database.session, "UPDATE credit_accounts SET balance = balance + 1 WHERE tenant_id = 'tenant-0'")

    assert await _run(database.url, as_json=True) == EXIT_TAMPERED

    report = json.loads(capsys.readouterr().out)
    assert set(report) == {
        "ok", "checked_at", "shards", "signatures_unchecked", "accounts", "seconds", "first_bad", "trial_balance", "private",
    }  # fmt: skip
    assert report["ok"] is False
    assert set(report["shards"][0]) == {"shard", "entries", "head_seq", "first_bad", "signed_size"}
    assert report["shards"][0]["first_bad"]["reason"].startswith("credit_accounts has balance ")
    assert report["first_bad"]["shard"] == 0


async def test_an_empty_ledger_is_intact(database: LedgerDatabase) -> None:
    await make_chain(database.session, [], shard_count=3)

    report = await database.verify()

    assert report.ok
    assert [(shard.entries, shard.head_seq) for shard in report.shards] == [(0, -1)] * 3


async def test_a_ledger_without_a_head_is_tampered(database: LedgerDatabase) -> None:
    await make_chain(database.session, mixed_events(50, 2))
    await change(database.session, "DELETE FROM ledger_shards")

    assert await database.first_bad() == (None, "ledger_shards has no row for this shard")


async def test_a_database_without_a_ledger_exits_2(database: LedgerDatabase, capsys: pytest.CaptureFixture[str]) -> None:
    assert await _run(database.url) == EXIT_UNCHECKED

    assert capsys.readouterr().err.startswith("could not check: the database holds no ledger yet")


async def test_a_database_without_the_schema_exits_2(
    postgres_server: PrivatePostgres, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await _run(postgres_server.url("postgres")) == EXIT_UNCHECKED

    assert "no shieldx schema" in capsys.readouterr().err


@pytest.mark.parametrize(
    "url", ["postgresql://postgres@127.0.0.1:1/none", "postgresql://postgres@/none?host=/nowhere", "nonsense"]
)
async def test_a_database_out_of_reach_exits_2(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await _run(url) == EXIT_UNCHECKED

    assert capsys.readouterr().err.startswith("could not check: ")


async def test_a_database_that_does_not_exist_exits_2(
    postgres_server: PrivatePostgres, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await _run(postgres_server.url("no_such_database")) == EXIT_UNCHECKED

    assert "no_such_database" in capsys.readouterr().err


_text = st.none() | st.text(max_size=40)
_number = st.integers(0, 10**14 - 1)
_name = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}", fullmatch=True)


@given(_number, _number, _name, _text, _text, st.sampled_from([None, '{"released":0}', '{"leg":1,"legs":2}']))
def test_every_entry_that_can_be_written_is_read_back_to_the_same_bytes(
    amount: int, balance: int, tenant: str, description: str | None, metadata: str | None, details: str | None
) -> None:
    event = Event(
        3, 1, 7, 1_763_000_000_123, "consume", tenant, f"tenant:{tenant}", "system:revenue", amount, balance, 0, 5,
        "019a7b3c-0000-7000-8000-000000000007", None, "f" * 22, None, description, metadata, details,
    )  # fmt: skip
    entry = entry_bytes(event, bytes(32))

    record = msgspec.json.decode(entry.removeprefix(ENTRY_PREFIX), type=Record)
    again = ENTRY_PREFIX + msgspec.json.Encoder(order="deterministic").encode(record)

    assert again == entry
    assert (record.amount, record.balance, record.description, record.metadata) == (amount, balance, description, metadata)
