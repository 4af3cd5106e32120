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
