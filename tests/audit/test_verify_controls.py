"""Settings, quotas, thresholds and alerts in the tables, against what the chain says of them."""

from __future__ import annotations

import pytest

from app.audit.checkpoint import Checkpoint
from app.audit.controls import ALERTS_KEPT_DAYS
from app.audit.increment import verify_since
from app.audit.merkle import EMPTY_ROOT
from app.audit.trust import Trust
from app.clock import now_ms, time_of, time_text
from tests.audit.chain import Book, make_chain
from tests.audit.conftest import LedgerDatabase
from tests.audit.log_house import LOG_ORIGIN
from tests.audit.tamper import change

SETTINGS = '{"low_balance_threshold":"40","quota":"{\\"limit\\":100,\\"period\\":\\"day\\"}"}'
DAY_MS = 86_400_000


def state(low: int, used: int, told: str = "", *, tenant: str = "") -> str:
    alerts = f'"alerts":[{told}],' if told else ""
    named = f',"tenant_id":"{tenant}"' if tenant else ""
    return f'{{{alerts}"count":2,"low":{low},"resets_at_ms":1800000000000{named},"told":0,"used":{used}}}'


async def write(ledger: LedgerDatabase, at_ms: int) -> None:
    """Write a ledger of one tenant that was told of a low balance, and once that its quota is used up."""
    book = Book(at_ms=at_ms)
    book.account("t1")
    book.topup("t1", 100)
    book.update("t1", SETTINGS, state(1, 0))
    crossed = '{"threshold":40,"type":"credits.low_balance"}'
    spent = book.consume("t1", 70, details=f'{{"controls":{state(2, 70, crossed)}}}')
    exceeded = '{"limit":100,"period":"day","type":"credits.quota_exceeded"}'
    refused = book.note("quota.exceeded", f'{{"controls":{state(2, 70, exceeded, tenant="t1")}}}')
    await make_chain(ledger.session, book.events)
    await ledger.session.execute("UPDATE credit_accounts SET settings = $1, controls = $2", SETTINGS, state(2, 70))
    low = '{"tenant_id":"t1","threshold":40,"balance":30,"available":30}'
    resets_at = time_text(1_800_000_000_000)
    quota = f'{{"tenant_id":"t1","quota":{{"limit":100,"period":"day","used":70,"resets_at":"{resets_at}"}}}}'
    rows = ((spent, "low_balance", low), (refused, "quota_exceeded", quota))
    for event, word, data in rows:
        await ledger.session.execute(
            "INSERT INTO credit_alerts (alert_id, tenant_id, type, at, shard, seq, data) VALUES ($1, 't1', $2, $3, 0, $4, $5)",
            f"alr_{event.transaction_id.replace('-', '')}_{event.seq}_{word}", f"credits.{word}", time_of(event.at_ms),
            event.seq, data,
        )  # fmt: skip


@pytest.fixture
async def told(database: LedgerDatabase) -> LedgerDatabase:
    await write(database, now_ms() - DAY_MS)
    return database


async def test_settings_controls_and_alerts_that_follow_from_the_chain_are_intact(told: LedgerDatabase) -> None:
    whole, in_ranges = await told.verify(), await told.verify(range_entries=2)

    assert whole.ok
    assert in_ranges.ok


@pytest.mark.parametrize(
    ("statement", "seq", "reason"),
    [
        ("UPDATE credit_accounts SET controls = controls || '{\"used\": 0}'", 4, 'credit_accounts has controls {"low": 2, '),
        (
            "UPDATE credit_accounts SET controls = '{}'",
            4,
            "credit_accounts has controls {} for tenant t1, the chain gives {",
        ),
        ("UPDATE credit_accounts SET settings = settings - 'quota'", 2, "credit_accounts has settings {"),
        ("DELETE FROM credit_alerts WHERE type LIKE '%low%'", 3, "credit_alerts has no row for alert alr_"),
        (
            "UPDATE credit_alerts SET data = data || '{\"balance\": 31}' WHERE seq = 3",
            3,
            "credit_alerts has another alert alr_",
        ),
        ("UPDATE credit_alerts SET tenant_id = 't2' WHERE seq = 4", 4, "credit_alerts has another alert alr_"),
        (
            "UPDATE credit_alerts SET alert_id = 'alr_made_up' WHERE seq = 3",
            3,
            "credit_alerts has alert alr_made_up, the chain",
        ),
    ],
)
async def test_what_does_not_follow_from_the_chain_is_found(
    told: LedgerDatabase, statement: str, seq: int, reason: str
) -> None:
    await change(told.session, statement)

    found = await told.first_bad()

    assert found[0] == seq
    assert found[1].startswith(reason)


async def test_settings_that_no_entry_has_set_are_found(ledger: LedgerDatabase) -> None:
    await change(ledger.session, 'UPDATE credit_accounts SET settings = \'{"low_balance_threshold": "1"}\'')

    seq, reason = await ledger.first_bad()

    assert seq is None
    assert reason == 'credit_accounts has settings {"low_balance_threshold": "1"} for tenant t1, the chain gives {}'


async def test_alerts_are_forgotten_with_their_time_and_only_then(database: LedgerDatabase) -> None:
    await write(database, now_ms() - ALERTS_KEPT_DAYS * DAY_MS - 1_000)
    await database.session.execute(
        "UPDATE credit_alerts SET at = at + interval '1 hour' WHERE seq = 4"  # not part of the chain's proof any more
    )

    forgotten = [await database.session.fetchval("SELECT forget_alerts(10)") for _ in range(2)]

    assert forgotten == [1, 0]
    assert await database.session.fetchval("SELECT array_agg(seq) FROM credit_alerts") == [4]


async def test_an_alert_of_a_time_that_cannot_be_read_is_found_from_a_checkpoint_too(told: LedgerDatabase) -> None:
    start = Trust(checkpoints={LOG_ORIGIN: Checkpoint(LOG_ORIGIN, 0, EMPTY_ROOT)})
    sound = await verify_since(told.url, seals={}, progress=lambda *_: None, trust=start)
    await change(told.session, "UPDATE credit_alerts SET at = '0044-03-15 BC' WHERE seq = 3")

    report = await verify_since(told.url, seals={}, progress=lambda *_: None, trust=start)

    assert sound.first_bad is None
    assert report.first_bad is not None
    assert report.first_bad.reason.startswith("credit_accounts or credit_alerts has a row that cannot be read")
