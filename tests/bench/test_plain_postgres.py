"""The peer on a real Postgres: it must be a correct ledger, or beating it would mean nothing."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from aiohttp.test_utils import TestClient, TestServer

from app.embedded import EmbeddedServers
from bench.plain_postgres import ConsumeBody, Postgres, Problem, Transaction, make_app, seed

BALANCE = 1_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def database_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """A Postgres of its own for this file."""
    directory: Path = tmp_path_factory.mktemp("peer")
    async with EmbeddedServers(directory, on_exit=lambda *_: None) as endpoints:
        yield endpoints.admin_database_url


@pytest_asyncio.fixture(loop_scope="module")
async def peer(database_url: str) -> AsyncIterator[Postgres]:
    """Three accounts of 1,000 credits, and nothing else."""
    connection = await asyncpg.connect(database_url)
    await connection.execute("DROP TABLE IF EXISTS entries, accounts")
    await connection.close()
    await seed(database_url, 3, BALANCE)
    peer = await Postgres.open(database_url, 8)
    yield peer
    await peer.close()


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def entries(database_url: str, tenant_id: str) -> list[asyncpg.Record]:
    """The chain of one account in its order."""
    connection = await asyncpg.connect(database_url)
    try:
        return await connection.fetch("SELECT * FROM entries WHERE tenant_id = $1 ORDER BY version", tenant_id)
    finally:
        await connection.close()


async def test_consume_debits_once_per_key(peer: Postgres, database_url: str) -> None:
    body = ConsumeBody("t0000000", 5)

    first = await peer.consume(body, "key")
    again = await peer.consume(body, "key")

    assert isinstance(first, Transaction)
    assert again == first
    assert first.balance == BALANCE - 5
    assert len(await entries(database_url, "t0000000")) == 1


async def test_same_key_at_the_same_time_debits_once(peer: Postgres, database_url: str) -> None:
    body = ConsumeBody("t0000000", 5)

    answers = await asyncio.gather(*(peer.consume(body, "key") for _ in range(20)))

    assert len({repr(answer) for answer in answers}) == 1
    assert len(await entries(database_url, "t0000000")) == 1


async def test_key_used_for_another_request_is_refused(peer: Postgres) -> None:
    await peer.consume(ConsumeBody("t0000000", 5), "key")

    answer = await peer.consume(ConsumeBody("t0000000", 6), "key")

    assert isinstance(answer, Problem)
    assert (answer.status, answer.code) == (422, "idempotency_key_reused")


async def test_balance_never_goes_below_zero_under_concurrency(peer: Postgres) -> None:
    body = ConsumeBody("t0000000", 100)

    answers = await asyncio.gather(*(peer.consume(body, f"key-{number}") for number in range(30)))

    balances = sorted(answer.balance for answer in answers if isinstance(answer, Transaction))
    assert balances == [100 * number for number in range(10)]
    assert {answer.status for answer in answers if isinstance(answer, Problem)} == {402}


async def test_unknown_account_is_refused(peer: Postgres) -> None:
    answer = await peer.consume(ConsumeBody("nobody", 1), "key")

    assert isinstance(answer, Problem)
    assert (answer.status, answer.code) == (404, "no_account")


async def test_concurrent_debits_form_one_chain_per_account(peer: Postgres, database_url: str) -> None:
    tenants = ["t0000000", "t0000001"]
    await asyncio.gather(*(peer.consume(ConsumeBody(tenants[number % 2], 1), f"key-{number}") for number in range(40)))

    for tenant in tenants:
        previous = b""
        rows = await entries(database_url, tenant)
        for version, row in enumerate(rows, start=1):
            microseconds = round((row["created_at"].timestamp() - 946_684_800) * 1_000_000)  # Since 2000-01-01.
            numbers = (version, row["amount"], row["balance"])
            record = b"".join(number.to_bytes(8, "big") for number in numbers)
            record += row["transaction_id"].bytes + microseconds.to_bytes(8, "big") + tenant.encode()
            assert row["previous_hash"] == previous
            assert row["hash"] == hashlib.sha256(previous + record).digest()
            previous = row["hash"]
        assert len(rows) == 20


async def test_http_answers_as_the_contract_says(peer: Postgres, database_url: str) -> None:
    path = "/v1/credits/consume"
    body = {"tenant_id": "t0000002", "amount": 7}
    async with TestClient(TestServer(make_app(database_url, 2))) as client:
        done = await client.post(path, json=body, headers={"Idempotency-Key": "http"})
        keyless = await client.post(path, json=body)
        wrong = await client.post(path, json={"tenant_id": "t", "amount": "7"}, headers={"Idempotency-Key": "k"})
        broken = await client.post(path, data=b"{", headers={"Idempotency-Key": "k"})

        transaction = await done.json()

    assert (done.status, keyless.status, wrong.status, broken.status) == (200, 400, 422, 400)
    assert transaction["balance"] == transaction["available"] == BALANCE - 7
    assert transaction["transaction_id"][14] == "7"
