"""Witnesses over real HTTP: a small one by the specification, with the checks of another program, and ill-behaved ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tlog_scales.tlog import Checkpoint as OutsideCheckpoint
from tlog_scales.tlog import ConsistencyProof, ConsistencyProofInvalid
from tlog_scales.utils import b64dec

from app.audit.checkpoint import open_checkpoint
from app.audit.note import COSIGNATURE, NoteRefused, Signer, Verifier
from app.audit.witness import Witness, WitnessFeed, WitnessRefused, parse_witnesses
from app.web import outgoing
from app.web.outgoing import Outgoing
from tests.audit.chain import mixed_events
from tests.audit.log_house import KEY, LogHouse

KEY_OF_WITNESS = Signer("witness.example/w1", bytes(32), COSIGNATURE)


@dataclass
class SmallWitness:
    """A witness by https://c2sp.org/tlog-witness that knows one log, and can be told to answer something else."""

    size: int = 0
    root: bytes = b""
    requests: list[str] = field(default_factory=list)
    instead: web.Response | None = None
    key: Signer = KEY_OF_WITNESS

    async def add_checkpoint(self, request: web.Request) -> web.Response:
        """POST /w/add-checkpoint."""
        head, _, note = (await request.text()).partition("\n\n")
        self.requests.append(head)
        if self.instead is not None:
            return self.instead
        old, *hashes = head.split("\n")
        checkpoint = OutsideCheckpoint.from_text(note)
        try:
            open_checkpoint(note, [KEY.verifier])
        except NoteRefused:
            return web.Response(status=403)
        if old != f"old {self.size}":
            return web.Response(status=409, text=f"{self.size}\n", content_type="text/x.tlog.size")
        try:
            if self.size:
                ConsistencyProof(self.size, checkpoint.size, [b64dec(line) for line in hashes]).check(
                    self.root, checkpoint.root_hash
                )
            elif hashes:
                return web.Response(status=422)
        except ConsistencyProofInvalid:
            return web.Response(status=422)
        self.size, self.root = checkpoint.size, checkpoint.root_hash
        other = Signer("witness.example/other", bytes([9]) * 32, COSIGNATURE)
        lines = [one.cosign(checkpoint.serialize_body(), 1_800_000_000 + self.size).line for one in (other, self.key)]
        return web.Response(text="".join(lines))


@dataclass
class Stand:
    """A log, a witness that listens, and the feed between them."""

    house: LogHouse
    witness: SmallWitness
    feed: WitnessFeed
    url: str

    async def grow(self, size: int) -> None:
        """Sign the log at this size."""
        self.house.shard.durable = size - 1
        await self.house.signers[0].round()

    async def cosigned(self) -> list[int]:
        rows = await self.house.database.session.fetch("SELECT size FROM audit_cosignatures ORDER BY size")
        return [row[0] for row in rows]


@pytest.fixture
async def stand(house: LogHouse) -> AsyncIterator[Stand]:
    await house.write(mixed_events(400, 3))
    witness = SmallWitness()
    app = web.Application()
    app.router.add_post("/w/add-checkpoint", witness.add_checkpoint)
    async with TestServer(app) as server, Outgoing() as client:
        url = str(server.make_url("/w"))
        (named,) = parse_witnesses(f"{KEY_OF_WITNESS.verifier.vkey} {url}/")
        yield Stand(house, witness, WitnessFeed(house.shard, house.log, house.signer(), named, client.post), url)


async def test_every_checkpoint_is_cosigned_with_a_proof_from_the_last_one(stand: Stand) -> None:
    for size in (1, 300, 350):
        await stand.grow(size)
        await stand.feed.submit()

    assert await stand.cosigned() == [1, 300, 350]
    assert [head.split("\n")[0] for head in stand.witness.requests] == ["old 0", "old 1", "old 300"]
    opened = await stand.house.opened(KEY.verifier, KEY_OF_WITNESS.verifier)
    assert [one.time_s for one in opened.signatures] == [None, 1_800_000_350]
    receipt = await stand.house.log.receipt(0, 5)
    assert receipt.note.count("\u2014") == 2


async def test_a_checkpoint_that_was_cosigned_is_not_shown_again(stand: Stand) -> None:
    await stand.grow(10)
    await stand.feed.submit()
    await stand.feed.submit()

    assert len(stand.witness.requests) == 1


async def test_a_new_process_knows_what_the_witness_has_seen(stand: Stand) -> None:
    await stand.grow(10)
    await stand.feed.submit()
    again = WitnessFeed(stand.house.shard, stand.house.log, stand.house.signers[0], stand.feed._witness, stand.feed._post)
    await stand.grow(20)

    await again.submit()

    assert stand.witness.requests[-1].startswith("old 10\n")
    assert await stand.cosigned() == [10, 20]


async def test_a_conflict_tells_the_size_to_prove_from(stand: Stand) -> None:
    await stand.grow(10)
    await stand.feed.submit()
    await stand.house.database.session.execute("DELETE FROM audit_cosignatures")
    again = WitnessFeed(stand.house.shard, stand.house.log, stand.house.signers[0], stand.feed._witness, stand.feed._post)
    await stand.grow(20)

    await again.submit()

    assert [head.split("\n")[0] for head in stand.witness.requests] == ["old 0", "old 0", "old 10"]
    assert await stand.cosigned() == [20]


async def test_a_witness_that_has_seen_more_is_believed(stand: Stand) -> None:
    stand.witness.size, stand.witness.root = 50, bytes(32)
    await stand.grow(20)

    with pytest.raises(WitnessRefused, match="has cosigned 50 entries, the log has 20"):
        await stand.feed.submit()


async def test_a_witness_that_has_seen_another_tree_refuses(stand: Stand) -> None:
    stand.witness.size, stand.witness.root = 5, bytes(32)
    await stand.grow(20)

    with pytest.raises(WitnessRefused, match="status 422"):
        await stand.feed.submit()

    assert await stand.cosigned() == []


ANSWERS = [
    (web.Response, {"status": 500}, WitnessRefused), (web.Response, {"status": 404}, WitnessRefused),
    (web.Response, {"status": 302, "headers": {"Location": "/w/add-checkpoint"}}, WitnessRefused),
    (web.Response, {"text": ""}, NoteRefused), (web.Response, {"text": "no lines\n"}, NoteRefused),
    (web.Response, {"body": b"\xff\n"}, WitnessRefused),
    (web.Response, {"text": Signer("w2", bytes(32), COSIGNATURE).cosign("x\n", 1).line}, WitnessRefused),
    (web.Response, {"text": KEY_OF_WITNESS.cosign("another checkpoint\n", 1).line}, NoteRefused),
    (web.Response, {"status": 409, "text": "x\n", "content_type": "text/x.tlog.size"}, NoteRefused),
    (web.Response, {"status": 409, "text": "2\n", "content_type": "text/plain"}, WitnessRefused),
    (web.Response, {"text": "x" * 70_000}, ConnectionError),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(ANSWERS)))
async def test_a_bad_answer_is_not_kept(stand: Stand, number: int) -> None:
    make, values, refusal = ANSWERS[number]
    stand.witness.instead = make(**values)
    await stand.grow(20)

    with pytest.raises(refusal):
        await stand.feed.submit()

    assert await stand.cosigned() == []


async def test_a_silent_witness_holds_nothing_up(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "ANSWER_TIMEOUT_S", 0.05)
    held = asyncio.Event()

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await held.wait()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with Outgoing() as client:
        with pytest.raises(ConnectionError, match="no answer"):
            await client.post(f"http://127.0.0.1:{port}/w/add-checkpoint", b"")
    held.set()
    server.close()
    await server.wait_closed()


async def test_the_task_feeds_the_witness_and_survives_its_failures(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.audit.witness.FAILED_INTERVAL_S", 0.01)
    monkeypatch.setattr("app.audit.witness.SUBMIT_INTERVAL_S", 0.01)
    stand.witness.instead = web.Response(status=503)
    await stand.grow(20)
    stand.feed.start(lambda error: pytest.fail(str(error)))
    async with asyncio.timeout(20):
        while stand.feed.failures == 0:
            await asyncio.sleep(0.01)
    assert "status 503" in stand.feed.reason
    stand.witness.instead = None

    async with asyncio.timeout(20):
        while await stand.cosigned() != [20]:
            await asyncio.sleep(0.01)
    await stand.feed.stop()

    assert stand.feed.cosigned_size == 20


def test_witnesses_are_given_as_key_and_url() -> None:
    vkey = KEY_OF_WITNESS.verifier.vkey

    parsed = parse_witnesses(f"{vkey} https://a.example/x/, {vkey}  http://127.0.0.1:8080")

    assert [one.url for one in parsed] == ["https://a.example/x", "http://127.0.0.1:8080"]
    assert all(isinstance(one, Witness) and isinstance(one.verifier, Verifier) for one in parsed)
    assert parse_witnesses("") == []
    for wrong in (
        vkey,
        f"{vkey} ftp://a",
        f"{KEY.verifier.vkey} https://a.example",
        "https://a.example",
        f"{vkey[:-2]} https://a",
    ):
        with pytest.raises(NoteRefused):
            parse_witnesses(wrong)
