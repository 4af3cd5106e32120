"""Private records: kept encrypted, read on the record, destroyed for good, under master keys that may change."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import asyncpg
import msgspec
import pytest

from app.cli import main
from app.db.pool import Pool
from app.privacy.envelope import MasterKeys, Sealed, kek_id
from app.privacy.payment import Payment, commitment
from app.privacy.rotation import rewrap
from app.privacy.store import NoRecord, OtherPayment, PrivateStore
from tests.privacy.conftest import NEW, OLD, Clock, Facts

CARD = "4111 1111 1111 1111"
PAYMENT = Payment(CARD, "John Doe", "12/27")
DAY_S = 86_400
Connection = asyncpg.Connection


async def stored_text(owner: Connection) -> str:
    """Everything that the private tables hold, as text."""
    rows = []
    for table in ("private_keys", "private_records", "private_erasures"):
        rows += await owner.fetch(f"SELECT t::text, row_to_json(t)::text FROM {table} t")
    return "\n".join(f"{row[0]} {row[1]}" for row in rows)


def test_a_payment_shows_only_its_mask() -> None:
    shown = {"card_number": "****-****-****-1111", "cardholder_name": "Jo****", "expiry": "**/**"}

    assert PAYMENT.shown() == shown
    assert repr(PAYMENT) == f"Payment({shown})"
    assert Payment("4222222222222").shown() == {"card_number": "****-****-****-2222"}


def test_a_payment_has_no_place_for_a_verification_code() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"card_number": CARD, "cvv": "123"}, Payment)


def test_a_commitment_binds_content_kind_and_salt() -> None:
    one = commitment(bytes(32), "payment", b"x")

    assert one.hex() == "e61d6af3bc176b9075bea8f0bd8ed9f92daeb3bc751d38134574acb057903d47"
    assert len({one, commitment(bytes(31) + b"1", "payment", b"x"), commitment(bytes(32), "contact", b"x"),
                commitment(bytes(32), "payment", b"y")}) == 4  # fmt: skip
    with pytest.raises(AssertionError):
        commitment(b"short", "payment", b"x")


async def test_what_is_kept_comes_back_and_the_read_is_on_the_record(store: PrivateStore, facts: Facts) -> None:
    kept = await store.keep("r1", "t1", "s1", PAYMENT)

    disclosed = await store.read("r1", actor="key-7", purpose="chargeback")

    assert disclosed.payment == PAYMENT
    assert commitment(disclosed.salt, "payment", PAYMENT.canonical()) == kept.commitment == disclosed.commitment
    assert facts.seen == [("privacy.read", {"actor": "key-7", "found": True, "purpose": "chargeback", "record": "r1"})]
    assert CARD not in repr(disclosed)
    assert disclosed.salt.hex() not in repr(disclosed)


async def test_nothing_is_stored_in_the_clear(store: PrivateStore, owner: Connection) -> None:
    await store.keep("r1", "t1", "s1", PAYMENT)

    text = await stored_text(owner)

    assert "****-****-****-1111" in text
    assert "Jo****" in text
    for secret in (CARD, "4111", "John", "Doe", "12/27", CARD.encode().hex(), b"John Doe".hex(), OLD.hex()):
        assert secret not in text


async def test_a_retry_keeps_what_the_first_attempt_kept(store: PrivateStore, owner: Connection) -> None:
    first = await store.keep("r1", "t1", "s1", PAYMENT)

    second = await store.keep("r1", "t1", "s1", PAYMENT)
    with pytest.raises(OtherPayment):
        await store.keep("r1", "t1", "s1", Payment("4222222222222"))

    assert second == first._replace(made=False)
    assert await owner.fetchval("SELECT count(*) FROM private_records") == 1


async def test_records_of_a_subject_share_a_key_and_subjects_do_not(store: PrivateStore) -> None:
    kept = await asyncio.gather(*(store.keep(f"r{i}", "t1", f"s{i % 2}", PAYMENT) for i in range(8)))

    assert len({one.dek_id for one in kept}) == 2
    assert len({one.commitment for one in kept}) == 8


async def test_a_read_that_cannot_be_recorded_gives_nothing(store: PrivateStore, facts: Facts) -> None:
    await store.keep("r1", "t1", "s1", PAYMENT)
    facts.fault = ConnectionError("no chain")

    with pytest.raises(ConnectionError):
        await store.read("r1", actor="key-7", purpose="chargeback")


async def test_a_failed_read_is_on_the_record_too(store: PrivateStore, facts: Facts) -> None:
    with pytest.raises(NoRecord):
        await store.read("nothing", actor="key-7", purpose="curiosity")

    assert facts.seen[0][1]["found"] is False


@pytest.mark.parametrize(
    "change",
    ["sealed = set_byte(sealed, 40, 1 + get_byte(sealed, 40) % 200)", "tenant_id = 't2'", "record_id = 'r9'",
     "sealed = salt", "commitment = sha256('x')",
     "sealed = (SELECT sealed FROM private_records WHERE record_id = 'r2'), salt = (SELECT salt FROM private_records WHERE record_id = 'r2')"],
)  # fmt: skip
async def test_a_record_that_was_changed_does_not_open(store: PrivateStore, owner: Connection, change: str) -> None:
    await store.keep("r1", "t1", "s1", PAYMENT)
    await store.keep("r2", "t1", "s1", Payment("4222222222222"))
    await owner.execute(f"UPDATE private_records SET {change} WHERE record_id = 'r1'")

    with pytest.raises(Sealed):
        await store.read("r9" if "r9" in change else "r1", actor="a", purpose="p")


async def test_erasure_destroys_key_and_rows_and_says_what_the_tombstone_needs(
    store: PrivateStore, owner: Connection, clock: Clock
) -> None:
    kept = [await store.keep(f"r{i}", "t1", "subject-of-the-test", PAYMENT) for i in range(3)]
    other = await store.keep("other", "t1", "s2", PAYMENT)

    erasure = await store.erase("subject-of-the-test", request_id="req-1", basis="gdpr-17")

    assert erasure is not None
    assert erasure.kind == "privacy.erasure"
    assert json.loads(erasure.tombstone) == {
        "basis": "gdpr-17", "entry_id": erasure.erasure_id, "keys": [kept[0].dek_id.hex()], "records": {"payment": 3},
        "request_id": "req-1",
    }  # fmt: skip
    text = await stored_text(owner)
    assert "subject-of-the-test" not in text
    assert await owner.fetchval("SELECT array_agg(record_id) FROM private_records") == ["other"]
    assert (await store.read("other", actor="a", purpose="p")).commitment == other.commitment
    with pytest.raises(NoRecord):
        await store.read("r1", actor="a", purpose="p")
    with pytest.raises(NoRecord):
        await store.shown("r1")
    assert await store.open_erasures() == [erasure]


async def test_a_tombstone_stays_open_until_it_is_in_the_chain(store: PrivateStore) -> None:
    await store.keep("r1", "t1", "s1", PAYMENT)
    erasure = await store.erase("s1", request_id="req-1", basis="gdpr-17")
    assert erasure is not None

    await store.entered(erasure.erasure_id)

    assert await store.open_erasures() == []
    assert await store.erase("s1", request_id="req-2", basis="gdpr-17") is None


async def test_a_subject_that_comes_back_after_its_erasure_has_another_key(store: PrivateStore) -> None:
    before = await store.keep("r1", "t1", "s1", PAYMENT)
    await store.erase("s1", request_id="req-1", basis="gdpr-17")

    after = await store.keep("r2", "t1", "s1", PAYMENT)

    assert after.dek_id != before.dek_id
    assert (await store.read("r2", actor="a", purpose="p")).payment == PAYMENT


async def test_records_kept_while_a_subject_is_erased_open_or_are_gone(store: PrivateStore, owner: Connection) -> None:
    await store.keep("first", "t1", "s1", PAYMENT)

    await asyncio.gather(
        *(store.keep(f"r{i}", "t1", "s1", PAYMENT) for i in range(20)), store.erase("s1", request_id="q", basis="b"),
        return_exceptions=True,
    )  # fmt: skip

    for row in await owner.fetch("SELECT record_id FROM private_records"):
        assert (await store.read(row["record_id"], actor="a", purpose="p")).payment == PAYMENT
    assert await owner.fetchval("SELECT count(*) FROM private_records WHERE record_id = 'first'") == 0


async def test_a_refused_operation_leaves_no_record(store: PrivateStore, owner: Connection) -> None:
    await store.keep("r1", "t1", "s1", PAYMENT)

    await store.forget("r1")

    assert await owner.fetchval("SELECT count(*) FROM private_records") == 0


async def test_retention_ends_what_is_too_old_by_class_in_batches(
    store: PrivateStore, clock: Clock, owner: Connection
) -> None:
    for i in range(5):
        await store.keep(f"old{i}", "t1", f"s{i}", PAYMENT)
    clock.now_ms += 10 * DAY_S * 1000
    await store.keep("young", "t1", "s0", PAYMENT)

    kept = await store.expire({"payment": 540 * DAY_S})
    ended = await store.expire({"payment": 9 * DAY_S, "contact": 1}, batch=2)

    assert kept == []
    assert [json.loads(one.tombstone)["records"] for one in ended] == [2, 2, 1]
    assert {one.kind for one in ended} == {"privacy.retention"}
    assert json.loads(ended[0].tombstone)["before"] == "2026-05-29T20:26:40.000Z"
    assert await owner.fetchval("SELECT array_agg(record_id) FROM private_records") == ["young"]
    assert await owner.fetchval("SELECT array_agg(subject) FROM private_keys") == ["s0"]


async def test_keys_are_rewrapped_in_batches_while_records_are_read_and_kept(
    store: PrivateStore, pool: Pool, owner: Connection, clock: Clock, facts: Facts
) -> None:
    for i in range(7):
        await store.keep(f"r{i}", "t1", f"s{i}", PAYMENT)
    both = MasterKeys([NEW, OLD])
    server = PrivateStore(pool, both, facts, clock)
    before = await owner.fetchval("SELECT string_agg(encode(sealed, 'hex'), ',' ORDER BY record_id) FROM private_records")

    rotation, *_ = await asyncio.gather(
        rewrap(owner, both, batch=2), *(server.keep(f"n{i}", "t1", f"s{i}", PAYMENT) for i in range(7)),
        *(server.read(f"r{i}", actor="a", purpose="p") for i in range(7)),
    )  # fmt: skip

    assert (rotation.rewrapped, rotation.sealed, rotation.left) == (7, 0, {})
    assert await owner.fetchval("SELECT array_agg(DISTINCT kek_id) FROM private_keys") == [kek_id(NEW)]
    after = "SELECT string_agg(encode(sealed, 'hex'), ',' ORDER BY record_id) FROM private_records WHERE record_id LIKE 'r%'"
    assert await owner.fetchval(after) == before
    only_new = PrivateStore(pool, MasterKeys([NEW]), facts, clock)
    for name in ("r", "n"):
        for i in range(7):
            assert (await only_new.read(f"{name}{i}", actor="a", purpose="p")).payment == PAYMENT
    with pytest.raises(Sealed):
        await store.read("r0", actor="a", purpose="p")


async def test_a_rotation_that_was_cut_off_goes_on_and_counts_what_it_cannot_open(
    store: PrivateStore, owner: Connection
) -> None:
    for i in range(5):
        await store.keep(f"r{i}", "t1", f"s{i}", PAYMENT)
    await owner.execute("UPDATE private_keys SET kek_id = $1 WHERE subject = 's1'", bytes(8))
    await owner.execute(
        "UPDATE private_keys SET wrapped = set_byte(wrapped, 0, 7 + get_byte(wrapped, 0) % 99) WHERE subject = 's2'"
    )
    masters = MasterKeys([NEW, OLD])

    first = await rewrap(owner, masters, batch=2)
    second = await rewrap(owner, masters, batch=2)

    assert (first.rewrapped, first.sealed) == (3, 2)
    assert (second.rewrapped, second.sealed) == (0, 2)
    assert second.left == {bytes(8).hex(): 1, kek_id(OLD).hex(): 1}


async def test_the_command_rotates_and_says_what_is_left(
    store: PrivateStore, ledger_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no data directory with a key of its own
    await store.keep("r1", "t1", "s1", PAYMENT)
    outcomes = []
    for keys in ("", f"{NEW.hex()}", f"{NEW.hex()},{OLD.hex()}", "nonsense"):
        monkeypatch.setenv("SHIELDX_MASTER_KEYS", keys)
        code = await asyncio.to_thread(main, ["keys", "rotate-master", "--database-url", ledger_url])
        outcomes.append((code, capsys.readouterr()))

    assert [code for code, _ in outcomes] == [2, 1, 0, 2]
    assert (
        outcomes[1][1].out
        == f"0 keys wrapped by master key {kek_id(NEW).hex()}\n1 keys are still wrapped by master key {kek_id(OLD).hex()}\n"
    )
    assert outcomes[2][1].out == f"1 keys wrapped by master key {kek_id(NEW).hex()}\n"
    assert NEW.hex() not in "".join(text.out + text.err for _, text in outcomes)


@pytest.mark.parametrize(
    "statement",
    ["UPDATE private_records SET shown = '{}'", "UPDATE private_keys SET subject = 'x'", "DELETE FROM private_erasures",
     "UPDATE private_erasures SET tombstone = ''", "TRUNCATE private_keys"],
)  # fmt: skip
async def test_the_server_can_destroy_private_data_but_not_change_it(pool: Pool, statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await pool.rows(5.0, statement, ())
