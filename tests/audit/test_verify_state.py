"""Changes to the tables that the chain folds to, while the chain itself is intact."""

from __future__ import annotations

import pytest

from tests.audit.chain import LAST
from tests.audit.conftest import LedgerDatabase
from tests.audit.tamper import change


@pytest.mark.parametrize(
    ("column", "value", "right"), [("balance", 5_000, 879), ("reserved", 1, 7), ("version", 3, 10), ("incoming", 2, 0)]
)
async def test_an_edited_account_is_found(ledger: LedgerDatabase, column: str, value: int, right: int) -> None:
    await change(ledger.session, f"UPDATE credit_accounts SET {column} = {value}")

    assert await ledger.first_bad() == (LAST, f"credit_accounts has {column} {value} for tenant t1, the chain gives {right}")


async def test_a_missing_account_is_found(ledger: LedgerDatabase) -> None:
    await change(ledger.session, "DELETE FROM credit_accounts")

    assert await ledger.first_bad() == (LAST, "credit_accounts has no row for tenant t1")


async def test_an_account_that_the_chain_does_not_know_is_found(ledger: LedgerDatabase) -> None:
    await ledger.session.execute(
        "INSERT INTO credit_accounts (tenant_id, shard, balance, reserved, version, created_at, updated_at) "
        "VALUES ('t9', 0, 5, 0, 1, now(), now())"
    )

    assert await ledger.first_bad() == (None, "credit_accounts has tenant t9, the chain has not")


async def test_a_held_reservation_closed_in_the_table_is_found(ledger: LedgerDatabase) -> None:
    await change(ledger.session, "UPDATE credit_reservations SET status = 'aborted' WHERE status = 'held'")

    seq, reason = await ledger.first_bad()

    assert seq == 7
    assert reason.endswith("is held by the chain, credit_reservations says aborted")


async def test_a_closed_reservation_opened_in_the_table_is_found(ledger: LedgerDatabase) -> None:
    await change(ledger.session, "UPDATE credit_reservations SET status = 'held' WHERE status = 'committed'")

    seq, reason = await ledger.first_bad()

    assert seq == 2
    assert reason.endswith("as held, the chain has not")


async def test_an_edited_held_reservation_is_found(ledger: LedgerDatabase) -> None:
    await change(ledger.session, "UPDATE credit_reservations SET amount = 8 WHERE status = 'held'")

    seq, reason = await ledger.first_bad()

    assert seq == 7
    assert "with 8 of tenant t1 for spend, the chain with 7" in reason


async def test_an_edited_refund_is_found(ledger: LedgerDatabase) -> None:
    await change(ledger.session, "UPDATE credit_refunds SET refunded = 1")

    seq, reason = await ledger.first_bad()

    assert seq == 6
    assert reason.startswith("credit_refunds has 1 of 100 for transaction ")
    assert reason.endswith(", the chain gives 40 of 100")


async def test_a_missing_refund_is_found(ledger: LedgerDatabase) -> None:
    await change(ledger.session, "DELETE FROM credit_refunds")

    seq, reason = await ledger.first_bad()

    assert seq == 6
    assert reason.startswith("credit_refunds has no row for transaction ")


async def test_a_refund_row_for_nothing_is_found(ledger: LedgerDatabase) -> None:
    await ledger.session.execute("INSERT INTO credit_refunds VALUES (gen_random_uuid(), 5, 0)")

    report = await ledger.verify()

    assert report.first_bad is not None
    assert report.first_bad.seq is None
    assert report.first_bad.reason.endswith(", which consumed nothing")


HELD, SPENT_HOLD = 7, 2  # seq of the open reservation of `ten_operations`, and of the one that is committed
HOUR = "in the hour from 2025-11-13T02:00Z, the chain gives"


def _row(seq: int) -> str:
    """Return the condition that names the reservation which an entry has opened."""
    return f"reservation_id = (SELECT transaction_id FROM audit_entries WHERE seq = {seq})"


@pytest.mark.parametrize(
    ("assignment", "of", "seq", "reason"),
    [
        ("committed = 31", SPENT_HOLD, 3, "credit_reservations has another end of reservation"),
        ("status = 'expired'", SPENT_HOLD, 3, "credit_reservations has another end of reservation"),
        ("closed_at = closed_at + interval '1 us'", SPENT_HOLD, 3, "credit_reservations has another end of reservation"),
        ("closed_seq = 4", SPENT_HOLD, 3, "credit_reservations has another end of reservation"),
        ("closed_at = NULL", SPENT_HOLD, 3, "credit_reservations has another end of reservation"),
        (
            "closed_at = (to_char(closed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || 'Z BC')::timestamptz",
            SPENT_HOLD,
            3,
            "credit_reservations has another end of reservation",
        ),
        ("amount = 51", SPENT_HOLD, SPENT_HOLD, "credit_reservations has another reservation"),
        ("tenant_id = 't2'", SPENT_HOLD, SPENT_HOLD, "credit_reservations has another reservation"),
        ("purpose = 'transfer_out'", SPENT_HOLD, SPENT_HOLD, "credit_reservations has another reservation"),
        ("expires_at = expires_at + interval '1 year'", HELD, HELD, "credit_reservations has another reservation"),
        ("description = ''", HELD, HELD, "credit_reservations has another reservation"),
        ("metadata = '{}'", HELD, HELD, "credit_reservations has another reservation"),
        ("counted = 1", HELD, HELD, "credit_reservations has another reservation"),
        ("transfer_id = reservation_id", HELD, HELD, "credit_reservations has another reservation"),
        ("shard = 1", SPENT_HOLD, SPENT_HOLD, "credit_reservations has no reservation"),
    ],
)
async def test_an_edited_reservation_is_found(
    ledger: LedgerDatabase, assignment: str, of: int, seq: int, reason: str
) -> None:
    await change(ledger.session, f"UPDATE credit_reservations SET {assignment} WHERE {_row(of)}")

    found, why = await ledger.first_bad()

    assert found == seq
    assert why.startswith(reason)


async def test_a_closed_reservation_that_is_gone_or_came_from_nowhere_is_found(ledger: LedgerDatabase) -> None:
    await change(
        ledger.session,
        f'INSERT INTO credit_reservations SELECT r.* FROM credit_reservations q, jsonb_populate_record(q, \'{{"reservation_id":'
        f'"019a0000-0000-7000-8000-000000000000"}}\') r WHERE q.{_row(SPENT_HOLD)}',
    )
    more = await ledger.first_bad()
    await change(
        ledger.session, "DELETE FROM credit_reservations WHERE reservation_id < '019a0000-0000-7000-8000-000000000001'"
    )
    await change(ledger.session, f"DELETE FROM credit_reservations WHERE {_row(SPENT_HOLD)}")
    seq, reason = await ledger.first_bad()

    assert more == (
        None, "credit_reservations has reservation 019a0000-0000-7000-8000-000000000000, the chain has not"
    )  # fmt: skip
    assert seq == SPENT_HOLD
    assert reason.endswith("which this entry gives")


async def test_an_account_that_is_made_older_is_found(ledger: LedgerDatabase) -> None:
    await change(ledger.session, "UPDATE credit_accounts SET created_at = created_at - interval '1 day'")

    seq, reason = await ledger.first_bad()

    assert seq == 0
    assert reason.startswith("credit_accounts has another time of account t1 than this entry gives: t1|2025-11-12T")


FAR_ALERT = (
    "INSERT INTO credit_alerts (alert_id, tenant_id, type, at, shard, seq, data) "
    "VALUES ('a', 't1', 'credits.low_balance', '290000-01-01', 0, 1, '{}')"
)


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("UPDATE credit_accounts SET created_at = 'infinity'", "credit_accounts has no time of account t1"),
        ("UPDATE credit_accounts SET settings = (repeat('[', 5000) || repeat(']', 5000))::jsonb",
         "credit_accounts has settings [[[["),
        (FAR_ALERT, "credit_alerts has a row that cannot be read"),
        ("INSERT INTO pending_entries (kind, details) VALUES ('key.create', '[1]')",
         "api_keys or pending_entries has a row that cannot be read"),
    ],
)  # fmt: skip
async def test_a_value_that_cannot_be_read_is_a_fault_and_stops_no_verification(
    ledger: LedgerDatabase, statement: str, reason: str
) -> None:
    await change(ledger.session, statement)

    report = await ledger.verify()

    assert report.first_bad is not None
    assert report.first_bad.reason.startswith(reason)


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("UPDATE usage_hourly SET amount = amount + 1 WHERE type = 'topup'",
         f"1 of 1001 credits of type topup for tenant t1 {HOUR} 1 of 1000 credits"),
        ("DELETE FROM usage_hourly WHERE type = 'refund'",
         f"nothing of type refund for tenant t1 {HOUR} 1 of 40 credits"),
        ("UPDATE usage_hourly SET count = 3 WHERE type = 'commit'",
         f"3 of 30 credits of type commit for tenant t1 {HOUR} 1 of 30 credits"),
        ("INSERT INTO usage_hourly VALUES ('t2', '2025-11-13T02:00Z', 'consume', 5, 1)",
         f"1 of 5 credits of type consume for tenant t2 {HOUR} nothing"),
        ("UPDATE usage_marks SET seq = 7", f"4 of 131 credits of type consume for tenant t1 {HOUR} 2 of 120 credits"),
        ("UPDATE usage_marks SET seq = 10", "usage_marks has seq 10, at which shard 0 has not come"),
        ("UPDATE usage_hourly SET start = start + interval '5 min' WHERE type = 'refund'",
         f"nothing of type refund for tenant t1 {HOUR} 1 of 40 credits"),
        ("INSERT INTO usage_hourly VALUES ('t2', 'infinity', 'consume', 5, 1)",
         "1 of 5 credits of type consume for tenant t2 in the hour from infinity, the chain gives nothing"),
        ("UPDATE usage_hourly SET amount = 'NaN' WHERE type = 'topup'",
         f"1 of NaN credits of type topup for tenant t1 {HOUR} 1 of 1000 credits"),
        ("UPDATE usage_hourly SET amount = 1000 + 1e-30 WHERE type = 'topup'",
         f"1 of 1000.000000000000000000000000000001 credits of type topup for tenant t1 {HOUR} 1 of 1000 credits"),
    ],
)  # fmt: skip
async def test_edited_usage_is_found(ledger: LedgerDatabase, statement: str, reason: str) -> None:
    await ledger.session.execute("SELECT roll_usage(0::smallint, 100)")
    assert (await ledger.verify(range_entries=3)).ok
    await change(ledger.session, statement)

    report = await ledger.verify(range_entries=3)

    assert report.first_bad is not None
    assert report.first_bad.shard is None
    assert report.first_bad.reason.removeprefix("usage_hourly has ") == reason
