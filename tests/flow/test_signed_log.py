"""A whole server signs its log: soon after an entry, at its end, and on after a restart."""

from __future__ import annotations

import asyncio
import re

import aiohttp
import asyncpg
import redis

from app.audit.checkpoint import open_checkpoint
from app.audit.log import Log, NotPublished
from app.audit.merkle import verify_consistency
from app.audit.note import Signer
from app.audit.receipt import parse_receipt, verify_receipt
from app.db.keys import checkpoint_key, shard_keys
from app.db.postgres import open_pool
from tests.credits.ledger_client import Client
from tests.credits.ledger_house import LedgerHouse
from tests.server import ROOT_KEY

SEED = bytes(range(32))
READ_S = 5.0
SIGNED_WITHIN_S = 10.0  # the promise is one second; the machine that runs the tests may be busy


async def test_a_served_ledger_is_signed_and_goes_on_after_a_restart(
    house: LedgerHouse, session: aiohttp.ClientSession
) -> None:
    ledger = await house.make_ledger()
    server = house.server_on(ledger, "signed", checkpoint_keys=SEED.hex())
    await server.start()
    client = Client(session, server.url)
    tenant = await client.tenant(100)
    spent = await client.done("/v1/credits/consume", {"tenant_id": tenant, "amount": 30})
    pool = await open_pool(ledger.database_url, 2)
    origin = (await pool.rows(READ_S, "SELECT origin FROM ledger", ()))[0][0]
    log, key = Log(pool, origin), Signer(f"{origin}/s00", SEED).verifier

    async with asyncio.timeout(SIGNED_WITHIN_S):
        receipt = await receipt_of(log, spent["seq"])
    async with session.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {ROOT_KEY}"}) as answer:
        metrics = await answer.text()
    before = await log.checkpoint(0)
    again = await client.done("/v1/credits/consume", {"tenant_id": tenant, "amount": 1})
    server.stop()
    at_the_end = await log.checkpoint(0)
    await server.start()
    last = await client.done("/v1/credits/consume", {"tenant_id": tenant, "amount": 2})
    async with asyncio.timeout(SIGNED_WITHIN_S):
        later = await receipt_of(log, last["seq"])

    verified = verify_receipt(parse_receipt(receipt), [key])
    assert spent["transaction_id"].encode() in (parse_receipt(receipt).entry or b"")
    assert verified.checkpoint.size > spent["seq"]
    assert re.search(r'^shieldx_log_size\{shard="0"\} [1-9]', metrics, re.MULTILINE)
    assert re.search(r'^shieldx_log_refused\{shard="0"\} 0\.0$', metrics, re.MULTILINE)
    assert open_checkpoint(at_the_end.note, [key]).checkpoint.size == again["seq"] + 1
    newest = verify_receipt(parse_receipt(later), [key]).checkpoint
    proof = await log.consistency(0, before.size, newest.size)
    verify_consistency(before.size, newest.size, proof.hashes, before.root, newest.root)
    pool.terminate()
    server.stop()


async def test_what_was_signed_stays_known_when_redis_is_rebuilt(house: LedgerHouse, session: aiohttp.ClientSession) -> None:
    ledger = await house.make_ledger()
    server = house.server_on(ledger, "rebuilt", checkpoint_keys=SEED.hex())
    await server.start()
    client = Client(session, server.url)
    tenant = await client.tenant(100)
    spent = await client.done("/v1/credits/consume", {"tenant_id": tenant, "amount": 30})
    pool = await open_pool(ledger.database_url, 2)
    log = Log(pool, (await pool.rows(READ_S, "SELECT origin FROM ledger", ()))[0][0])
    async with asyncio.timeout(SIGNED_WITHIN_S):
        await receipt_of(log, spent["seq"])
    server.stop()

    with redis.Redis.from_url(ledger.redis_url) as connection:
        known = connection.hgetall(checkpoint_key(0))
        connection.delete(shard_keys(0)[0])
        await server.start()
        rebuilt = connection.hgetall(checkpoint_key(0))
    generation = (await pool.rows(READ_S, "SELECT generation FROM ledger_shards", ()))[0][0]
    last = await client.done("/v1/credits/consume", {"tenant_id": tenant, "amount": 2})
    async with asyncio.timeout(SIGNED_WITHIN_S):
        await receipt_of(log, last["seq"])

    assert generation > 1, "Redis was laid anew"
    assert known[b"size"] == rebuilt[b"size"] == str(spent["seq"] + 1).encode()
    pool.terminate()
    server.stop()


async def receipt_of(log: Log, seq: int) -> str:
    """Return the receipt of an entry as soon as there is one."""
    while True:
        try:
            return (await log.receipt(0, seq)).text
        except (NotPublished, TimeoutError, asyncpg.InterfaceError):
            await asyncio.sleep(0.02)
