"""The chain over HTTP, as an auditor reads it: nothing but a verifier key is trusted."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest

from app.audit.checkpoint import open_checkpoint
from app.audit.merkle import verify_consistency, verify_inclusion
from app.audit.note import Verifier
from app.audit.tiles import Tile
from app.cli import main
from tests.credits.ledger_client import Client, Reply

SIGNED_WITHIN_S = 10.0


def raw(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


async def signed(client: Client, path: str) -> Reply:
    """GET what is there within a second of its entry."""
    async with asyncio.timeout(SIGNED_WITHIN_S):
        while (reply := await client.get(path)).status == 404 and reply.code == "not_published":
            await asyncio.sleep(0.05)
    return reply


async def verifier(client: Client) -> str:
    key: str = (await client.get("/v1/audit/keys")).body["data"][0]["key"]
    return key


async def spend(client: Client) -> Any:
    tenant = await client.tenant(100)
    return await client.done("/v1/credits/consume", {"tenant_id": tenant, "amount": 30})


async def test_a_receipt_proves_a_transaction_without_a_database(
    client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spent = await spend(client)
    reply = await signed(client, f"/v1/audit/receipts/{spent['transaction_id']}")
    path = tmp_path / "receipt"
    path.write_bytes(reply.raw)

    good = main(["audit", "verify", "--receipt", str(path), "--key", await verifier(client)])
    shown = capsys.readouterr().out
    path.write_bytes(reply.raw.replace(b"index 1", b"index 2", 1) if b"index 1" in reply.raw else reply.raw[:-40])
    bad = main(["audit", "verify", "--receipt", str(path), "--key", await verifier(client)])

    assert reply.headers["Content-Type"].startswith("text/plain")
    assert (good, bad != 0) == (0, True)
    assert spent["transaction_id"] in shown


async def test_proofs_lead_to_the_signed_root(client: Client) -> None:
    key = Verifier.from_vkey(await verifier(client))
    first = await spend(client)
    proof = (await signed(client, f"/v1/audit/proof/inclusion?shard=0&seq={first['seq']}")).body
    last = await spend(client)
    await signed(client, f"/v1/audit/proof/inclusion?seq={last['seq']}")
    newest = open_checkpoint((await client.get("/v1/audit/checkpoint?shard=0")).raw.decode(), [key]).checkpoint
    link = (await client.get(f"/v1/audit/proof/consistency?from={proof['size']}&to={newest.size}")).body

    verify_inclusion(
        proof["seq"], proof["size"], raw(proof["leaf_hash"]), [raw(h) for h in proof["hashes"]], raw(proof["root"])
    )
    verify_consistency(proof["size"], newest.size, [raw(h) for h in link["hashes"]], raw(proof["root"]), newest.root)
    assert raw(link["root"]) == newest.root
    assert newest.size > last["seq"]


async def test_lists_of_the_chain_are_read_in_pages(client: Client) -> None:
    first = await spend(client)
    await spend(client)

    shards = (await client.get("/v1/audit/shards?limit=1")).body
    page = (await client.get(f"/v1/audit/entries?after={first['seq'] - 1}&limit=2")).body
    rest = (await client.get(f"/v1/audit/entries?limit=2&cursor={page['next_cursor']}")).body

    assert (len(shards["data"]), shards["next_cursor"]) == (1, None)
    assert [item["seq"] for item in page["data"] + rest["data"]][:3] == [first["seq"] + i for i in range(3)]


async def test_tiles_hold_the_leaf_hashes_and_the_entries(client: Client) -> None:
    spent = await spend(client)
    await signed(client, f"/v1/audit/proof/inclusion?seq={spent['seq']}")
    entries = (await client.get(f"/v1/audit/entries?shard=0&after={spent['seq'] - 1}&limit=1")).body["data"]
    number, place = divmod(spent["seq"], 256)
    width = place + 1

    hashes = await client.get(f"/tiles/0/{Tile(0, number, width).path}")
    bundle = await client.get(f"/tiles/0/{Tile('entries', number, width).path}")
    note = await client.get("/tiles/0/checkpoint")

    assert hashes.raw[-32:].hex() == entries[0]["hash"]
    assert bundle.raw.endswith(raw(entries[0]["entry"]))
    assert "immutable" in hashes.headers["Cache-Control"]
    assert note.raw.startswith(b"shieldx/")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/audit/checkpoint?shard=1", 422, "invalid_request"),
        ("/v1/audit/checkpoint?shard=x", 422, "invalid_request"),
        ("/v1/audit/proof/inclusion", 422, "invalid_request"),
        ("/v1/audit/proof/inclusion?seq=5&size=5", 422, "invalid_request"),
        ("/v1/audit/proof/inclusion?seq=0&size=99999999999", 404, "not_published"),
        ("/v1/audit/proof/consistency?from=0&to=1", 422, "invalid_request"),
        ("/v1/audit/proof/consistency?from=2&to=1", 422, "invalid_request"),
        ("/v1/audit/receipts/01930f2e-7c11-7a64-8f6e-0d2b6a3c9e51", 404, "no_transaction"),
        ("/tiles/0/tile/0/xyz", 404, "not_found"),
        ("/tiles/0/tile/0/x999/999", 404, "not_published"),
        ("/tiles/x/checkpoint", 422, "invalid_request"),
        ("/tiles/00/checkpoint", 422, "invalid_request"),
        ("/tiles/1/checkpoint", 422, "invalid_request"),
    ],
)
async def test_what_cannot_be_answered_is_refused_clearly(client: Client, path: str, status: int, code: str) -> None:
    await spend(client)
    await signed(client, "/v1/audit/proof/inclusion?seq=0")

    assert (await client.get(path)).refusal == (status, code)


async def test_verification_over_http_checks_all_or_what_came_after_a_checkpoint(client: Client) -> None:
    spent = await spend(client)
    await signed(client, f"/v1/audit/proof/inclusion?seq={spent['seq']}")
    note = (await client.get("/v1/audit/checkpoint")).raw.decode()
    await spend(client)

    whole = await client.call("POST", "/v1/audit/verify")
    since = await client.call("POST", "/v1/audit/verify", {"checkpoint": note})
    garbled = await client.call("POST", "/v1/audit/verify", {"checkpoint": "not a note"})
    foreign = await client.call("POST", "/v1/audit/verify", {"checkpoint": note.replace("shieldx/", "elsewhere/", 1)})

    assert whole.body["ok"] is True, whole.body
    assert whole.body["shards"][0]["entries"] > spent["seq"]
    assert whole.body["shards"][0]["first_bad"] is None
    assert since.body["ok"] is True, since.body
    assert since.body["shards"][0]["entries"] < whole.body["shards"][0]["entries"]
    assert garbled.refusal == foreign.refusal == (422, "invalid_request")
