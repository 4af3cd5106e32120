"""The verifier on signed chains: what somebody with the key of the seals cannot hide, and verification from a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from app.audit.checkpoint import Checkpoint, parse_checkpoint, sign_checkpoint
from app.audit.entry import Event
from app.audit.increment import verify_since
from app.audit.note import COSIGNATURE, Signer, parse_note
from app.audit.report import Report
from app.audit.trust import Trust, TrustRefused, read_trust
from app.audit.verify import CannotCheckError, verify_ledger
from app.cli import main
from tests.audit.chain import SEAL, Book, mixed_events
from tests.audit.log_house import KEY, LOG_ORIGIN, LogHouse
from tests.audit.naive_tree import root_of
from tests.audit.tamper import change, rewrite_from

MANY = 600
KEYS = (KEY.verifier,)


async def sign(house: LogHouse, *sizes: int) -> None:
    signer = house.signer()
    for size in sizes:
        house.shard.durable = size - 1
        await signer.round()


async def signed(house: LogHouse, *sizes: int) -> list[Event]:
    """Write a chain of at least MANY entries, sign it at these sizes, and return its events."""
    events = mixed_events(MANY, 4)
    await house.write(events)
    await sign(house, *sizes)
    return events


def silent(_done: int, _total: int) -> None:
    """Show no progress."""


async def whole(house: LogHouse, trust: Trust = Trust(), *, processes: int = 1) -> Report:  # noqa: B008 - immutable
    return await verify_ledger(
        house.database.url, seals={SEAL.key_id: SEAL}, progress=silent, trust=trust, range_entries=100, processes=processes
    )


async def since(house: LogHouse, size: int, trust: Trust = Trust(KEYS)) -> Report:  # noqa: B008 - immutable
    """Verify from the checkpoint that the chain had at `size` when it was written."""
    checkpoint = Checkpoint(LOG_ORIGIN, size, root_of(house.leaves[:size]))
    trust = trust._replace(checkpoints={LOG_ORIGIN: checkpoint})
    return await verify_since(house.database.url, seals={SEAL.key_id: SEAL}, progress=silent, trust=trust)


def fault(report: Report) -> tuple[int | None, str]:
    assert not report.ok
    assert report.first_bad is not None
    return report.first_bad.seq, report.first_bad.reason


async def test_a_signed_chain_is_intact_and_the_report_says_up_to_where(house: LogHouse) -> None:
    await signed(house, 0, 1, 256, 400, 590)

    report = await whole(house, Trust(KEYS, sizes={0: 590}))
    apart = await whole(house, Trust(KEYS, sizes={0: 590}), processes=2)

    assert report.first_bad is None
    assert report.shards[0].signed_size == 590
    assert apart.shards == report.shards


@pytest.mark.parametrize("seq", [10, 300, 450])
async def test_a_history_rewritten_with_the_key_of_the_seals_is_found(house: LogHouse, seq: int) -> None:
    events = await signed(house, 256, 400, 590)
    changed = next(event for event in events[seq:] if event.type == "consume")
    changed.description = "something else"
    prev_hash = house.leaves[changed.seq - 1]

    await rewrite_from(house.database.session, events, changed.seq, prev_hash, SEAL)

    low, high = (0, 256) if changed.seq < 256 else (256, 400) if changed.seq < 400 else (400, 590)
    assert fault(await whole(house)) == (
        low, f"the entries from seq {low} to {high - 1} are not those for which the checkpoint of {high} entries was signed",
    )  # fmt: skip


async def test_a_history_rewritten_with_its_stored_tree_is_found_from_a_trusted_checkpoint(house: LogHouse) -> None:
    events = await signed(house, 300, 590)
    kept = list(house.leaves)
    next(event for event in events[200:] if event.type == "consume").description = "something else"
    await rewrite_from(house.database.session, events, 200, house.leaves[199], SEAL)
    await house.database.session.execute("DELETE FROM audit_checkpoints; DELETE FROM audit_tree")
    await house.redis.flushdb()
    await house.learn()
    await sign(house, 300, 590)
    house.leaves = kept

    assert (await whole(house, Trust(KEYS))).ok, "a thief of every key can make a sound history of its own"
    assert fault(await since(house, 300)) == (None, "the chain does not extend the trusted checkpoint of 300 entries")


async def cut_everything(house: LogHouse, size: int) -> None:
    """Cut the tail and mend all tables, as somebody would who may write to the database."""
    session = house.database.session
    await house.cut(size)
    await session.execute(
        "UPDATE credit_accounts a SET balance = e.balance, reserved = e.reserved, version = e.version FROM ("
        "SELECT DISTINCT ON (tenant_id) * FROM audit_entries WHERE tenant_id <> '' ORDER BY tenant_id, seq DESC) e "
        "WHERE e.tenant_id = a.tenant_id"
    )


def plain_events(count: int) -> list[Event]:
    book = Book()
    book.account("t")
    while len(book.events) < count:
        book.topup("t", 1)
    return book.events


async def test_a_tail_that_was_cut_is_found_by_the_checkpoint_that_is_left(house: LogHouse) -> None:
    await house.write(plain_events(60))
    await sign(house, 30, 50)
    await cut_everything(house, 40)
    await house.database.session.execute(
        "INSERT INTO audit_checkpoints VALUES (0, 50, $1, $2, 'x', 1)", root_of(house.leaves[:50]),
        sign_checkpoint(Checkpoint(LOG_ORIGIN, 50, root_of(house.leaves[:50])), [KEY]),
    )  # fmt: skip

    assert fault(await whole(house)) == (40, "a checkpoint of 50 entries was signed, the chain has 40")


async def test_a_tail_that_was_cut_with_its_checkpoints_is_found_by_what_is_remembered(house: LogHouse) -> None:
    await house.write(plain_events(60))
    await sign(house, 30, 50)
    await cut_everything(house, 40)

    assert (await whole(house, Trust(KEYS))).ok
    assert fault(await whole(house, Trust(sizes={0: 50}))) == (40, "the chain has 40 entries, 50 are remembered")
    assert fault(await since(house, 50)) == (40, "the chain has 40 entries, the trusted checkpoint 50")
    assert fault(await since(house, 30, Trust(sizes={0: 41}))) == (40, "the chain has 40 entries, 41 are remembered")


async def test_a_changed_or_missing_hash_of_the_stored_tree_is_found(house: LogHouse) -> None:
    await signed(house, 590)
    await change(house.database.session, "UPDATE audit_tree SET hash = sha256('x') WHERE number = 1")
    changed = fault(await whole(house))
    await change(house.database.session, "DELETE FROM audit_tree WHERE number = 1")
    missing = fault(await whole(house))

    assert changed == (256, "hash 1 of level 1 of the stored tree is not that of its entries")
    assert missing == (256, "hash 1 of level 1 of the stored tree is missing")


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("UPDATE audit_leaf_tiles SET hashes = set_byte(hashes, 8191, 255 - get_byte(hashes, 8191)) WHERE number = 1",
         (256, "packed tile 1 of the stored tree does not hold the hashes of its entries")),
        ("INSERT INTO audit_leaf_tiles SELECT 0, 2, hashes FROM audit_leaf_tiles WHERE number = 1",
         (512, "packed tile 2 of the stored tree does not hold the hashes of its entries")),
        ("INSERT INTO audit_leaf_tiles SELECT 0, 3, hashes FROM audit_leaf_tiles WHERE number = 1",
         (None, "packed tile 3 of the stored tree is of no entries that were signed")),
        ("INSERT INTO audit_leaf_tiles SELECT 9, 0, hashes FROM audit_leaf_tiles WHERE number = 1",
         (None, "audit_leaf_tiles has shard 9, the ledger has 1 shards")),
    ],
)  # fmt: skip
async def test_a_packed_tile_that_is_not_of_its_entries_is_found(
    house: LogHouse, statement: str, found: tuple[int | None, str]
) -> None:
    await signed(house, 590)
    assert (await whole(house)).ok
    await house.database.session.execute(statement)

    assert fault(await whole(house)) == found
    await house.database.session.execute("DELETE FROM audit_leaf_tiles")
    assert (await whole(house)).ok, "nothing needs them but speed"


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        (
            "UPDATE audit_checkpoints SET note = replace(note, E'\\n590\\n', E'\\n591\\n')",
            "the note of the checkpoint of 590 entries",
        ),
        ("UPDATE audit_checkpoints SET note = ''", "the checkpoint of 590 entries: "),
        ("UPDATE audit_checkpoints SET root = sha256('x')", "the entries from seq 0 to 589 are not those"),
        ("UPDATE audit_checkpoints SET size = 589", "the entries from seq 0 to 588 are not those"),
    ],
)
async def test_an_edited_checkpoint_is_found(house: LogHouse, statement: str, reason: str) -> None:
    await signed(house, 590)
    await change(house.database.session, statement)

    assert fault(await whole(house))[1].startswith(reason)


async def test_a_checkpoint_that_another_key_signed_is_found_with_the_key_of_the_log(house: LogHouse) -> None:
    await house.write(mixed_events(MANY, 4))
    house.shard.durable = 499
    await house.signer(Signer(LOG_ORIGIN, bytes(32))).round()

    assert (await whole(house)).ok
    assert fault(await whole(house, Trust(KEYS))) == (
        None,
        "the checkpoint of 500 entries: no known key has signed the note",
    )


@pytest.mark.parametrize("size", [0, 1, 5, 37, 255, 256, 257, 300, 511, 512, 590])
async def test_from_any_checkpoint_only_what_came_after_it_is_read(house: LogHouse, size: int) -> None:
    await signed(house, 256, 400, 595)

    report = await since(house, size)

    assert report.first_bad is None
    assert report.shards[0].entries == len(house.leaves) - size
    assert (report.shards[0].signed_size, report.trial_balance) == (595, None)


async def test_every_cut_of_every_kind_of_entry_can_be_verified_from(house: LogHouse) -> None:
    book = Book()
    for name in ("a", "b", "c"):
        book.account(name)
        book.topup(name, 1_000)
    hold, spent = book.reserve("a", 50), book.consume("b", 10)
    out, into = book.prepare("a", -10), book.prepare("b", 10)
    book.transfer([("a", -7), ("b", 4), ("c", 3)])
    book.refund(spent, 4)
    book.settle(out)
    book.settle(into)
    book.commit(hold, 30)
    book.refund(spent, 6)
    book.note("deployment", '{"experiment":"ranking","variant":"b"}')
    book.release("abort", book.reserve("c", 1))
    await house.write(book.events)
    await sign(house, len(book.events))

    found = {size: (await since(house, size)).first_bad for size in range(len(book.events) + 1)}

    assert found == dict.fromkeys(range(len(book.events) + 1))


async def test_a_change_after_the_checkpoint_is_found_and_one_before_it_is_left_to_a_whole_verification(
    house: LogHouse,
) -> None:
    events = await signed(house, 256, 400, 590)
    seq = next(event.seq for event in events[450:] if event.type == "consume")
    before = next(event.seq for event in events[100:] if event.type == "consume")
    session = house.database.session
    await change(session, "UPDATE audit_entries SET amount = amount + 1 WHERE seq = $1", before)
    untouched = await since(house, 400)
    await change(session, "UPDATE audit_entries SET amount = amount + 1 WHERE seq = $1", seq)

    assert untouched.ok
    assert fault(await since(house, 400))[0] == seq
    assert fault(await whole(house))[0] == before


@pytest.mark.parametrize("column", ["balance = balance + 1", "version = version + 1"])
async def test_an_account_that_was_changed_is_found_when_its_tenant_has_new_entries(house: LogHouse, column: str) -> None:
    events = await signed(house, 400)
    await change(house.database.session, f"UPDATE credit_accounts SET {column} WHERE tenant_id = $1", events[-1].tenant_id)

    assert "credit_accounts has balance, reserved, version" in fault(await since(house, 400))[1]


async def test_a_forged_continuation_is_found(house: LogHouse) -> None:
    events = await signed(house, 400)
    forged = next(event for event in events[400:] if event.type == "consume")
    for event in events[forged.seq :]:
        if event.tenant_id == forged.tenant_id:
            event.balance += 1
    await rewrite_from(house.database.session, events, forged.seq, house.leaves[forged.seq - 1], SEAL)

    assert fault(await since(house, 400))[0] == forged.seq


async def test_a_checkpoint_of_another_log_cannot_be_checked_here(house: LogHouse) -> None:
    await signed(house, 10)
    trust = Trust(checkpoints={"elsewhere/s00": Checkpoint("elsewhere/s00", 5, bytes(32))})

    with pytest.raises(CannotCheckError, match="of the log elsewhere/s00"):
        await verify_since(house.database.url, seals={}, progress=silent, trust=trust)


async def test_the_command_verifies_from_a_file_and_remembers_a_size(
    house: LogHouse, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await signed(house, 256, 590)
    file = tmp_path / "checkpoint"
    file.write_text(await house.database.session.fetchval("SELECT note FROM audit_checkpoints WHERE size = 256"))
    (tmp_path / "other").write_text(file.read_text().replace("\n256\n", "\n255\n"))
    verify = ["audit", "verify", "--database-url", house.database.url, "--data-dir", str(tmp_path), "--json"]
    from_file = [*verify, "--from-checkpoint", str(file), "--key", KEY.verifier.vkey]

    codes = [
        await run(from_file), await run([*verify, "--size", "590"]), await run([*verify, "--size", "0:9999"]),
        await run([*verify, "--from-checkpoint", str(tmp_path / "other"), "--key", KEY.verifier.vkey]),
        await run([*verify, "--size", "1_000"]), await run([*verify, "--key", "nonsense"]),
        await run([*verify, "--from-checkpoint", str(tmp_path / "none")]),
    ]  # fmt: skip

    assert codes == [0, 0, 1, 2, 2, 2, 2]
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert (first["ok"], first["shards"][0]["entries"]) == (True, len(house.leaves) - 256)


async def run(arguments: list[str]) -> int:
    """Run the command in a thread, because it has an event loop of its own."""
    import asyncio  # noqa: PLC0415

    return await asyncio.to_thread(main, arguments)


def test_trust_is_read_strictly(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint"
    file.write_text(sign_checkpoint(Checkpoint(LOG_ORIGIN, 5, bytes(32)), [KEY]))

    trust = read_trust([KEY.verifier.vkey], [file], ["7", "2:9"])

    assert trust.checkpoints == {LOG_ORIGIN: parse_checkpoint(parse_note(file.read_text()).text)}
    assert trust.sizes == {0: 7, 2: 9}
    assert trust.keys_of("other") == []
    for size in ("", "-1", "x", "1:", ":1", "1:2:3", "٣", "05", str(2**63)):
        with pytest.raises(TrustRefused):
            read_trust([], [], [size])
    with pytest.raises(TrustRefused):
        read_trust([Signer(LOG_ORIGIN, bytes(32)).verifier.vkey], [file], [])


async def test_the_command_proves_a_receipt_without_a_database(
    house: LogHouse, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    events = await signed(house, 590)
    witness = Signer("witness.example/w1", bytes(32), COSIGNATURE)
    receipt = await house.log.receipt(0, 123)
    file, bare, entry, wrong = (tmp_path / name for name in ("a.tlog-proof", "b.tlog-proof", "entry", "c.tlog-proof"))
    file.write_text(receipt.text + witness.cosign(parse_note(receipt.note).text, 1_800_000_000).line)
    bare.write_text(receipt._replace(entry=None).text)
    entry.write_bytes(receipt.entry or b"")
    wrong.write_text(receipt._replace(seq=124).text)
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    verify, key = ["audit", "verify", "--json", "--receipt"], ["--key", KEY.verifier.vkey]

    codes = [
        main([*verify, str(file), *key, "--witness", witness.verifier.vkey]), main([*verify, str(wrong), *key]),
        main([*verify, str(bare), *key]), main([*verify, str(bare), *key, "--entry", str(entry)]), main([*verify, str(file)]),
        main([*verify, str(tmp_path / "none"), *key]), main([*verify, str(file), "--key", "nonsense"]),
        main([*verify, str(bare), *key, "--entry", str(entry), "--witness", witness.verifier.vkey]),
    ]  # fmt: skip

    assert codes == [0, 1, 1, 0, 2, 2, 2, 1]
    shown = [msgspec.json.decode(line) for line in capsys.readouterr().out.splitlines()]
    assert (shown[0]["ok"], shown[0]["seq"], shown[0]["size"], shown[0]["origin"]) == (True, 123, 590, LOG_ORIGIN)
    assert shown[0]["record"]["transaction_id"] == events[123].transaction_id
    assert shown[0]["cosigned"] == [{"witness": "witness.example/w1", "at": "2027-01-15T08:00:00.000Z"}]
    assert shown[1]["ok"] is False
    main(["audit", "verify", "--receipt", str(file), *key])
    assert capsys.readouterr().out.startswith(f"proved: entry 123 is in the log {LOG_ORIGIN}, under its checkpoint of 590")
