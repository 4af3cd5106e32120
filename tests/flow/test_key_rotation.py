"""The key of a log is replaced with an overlap: who trusts the old one learns the new one from the log itself."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import orjson

from app.audit.entry import ENTRY_PREFIX
from app.audit.offline import check_receipt
from tests.credits.ledger_client import Client, Reply
from tests.credits.ledger_house import LedgerHouse

OLD, NEW = "11" * 32, "22" * 32
DEADLINE_S = 90.0


async def first(read: Callable[[], Awaitable[Reply]], found: Callable[[Reply], Any]) -> Any:
    """Read until there is something to be found, and return it."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not (it := found(reply := await read())):
        assert time.monotonic() < deadline_s, reply.raw
        await asyncio.sleep(0.05)
    return it


def signing(reply: Reply) -> list[str]:
    """Return the keys that sign, once the log has noted them."""
    rows = reply.body["data"]
    return [row["key"] for row in rows if row["state"] == "signing"] if rows[0]["from_size"] is not None else []


def rotation(reply: Reply) -> dict[str, Any] | None:
    entries = [base64.b64decode(row["entry"]) for row in reply.body["data"]]
    records = [orjson.loads(entry.removeprefix(ENTRY_PREFIX)) for entry in entries]
    return next((record for record in records if record["type"] == "log_key.rotate"), None)


async def test_an_auditor_with_the_old_key_takes_the_new_one_from_a_receipt(
    house: LedgerHouse, session: aiohttp.ClientSession
) -> None:
    ledger = await house.make_ledger()
    before = house.server_on(ledger, "old-key", checkpoint_keys=OLD)
    await before.start()
    client = Client(session, before.url)
    (old,) = await first(lambda: client.get("/v1/audit/keys"), signing)
    await client.tenant(5)
    before.stop()

    after = house.server_on(ledger, "both-keys", checkpoint_keys=f"{NEW},{OLD}")
    await after.start()
    client = Client(session, after.url)
    record = await first(lambda: client.get("/v1/audit/entries?shard=0"), rotation)
    path = f"/v1/audit/receipts/{record['transaction_id']}"
    receipt = await first(lambda: client.get(path), lambda reply: reply.raw if reply.status == 200 else None)
    keys = signing(await client.get("/v1/audit/keys"))
    after.stop()

    shown = check_receipt(receipt, [old])
    assert shown.ok, shown.reason
    assert shown.record is not None
    (new,) = shown.record["details"]["added"]
    assert (shown.record["details"]["retired"], sorted(keys)) == ([], sorted([old, new]))
    assert check_receipt(receipt, [new]).ok
