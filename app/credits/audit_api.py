"""The chain over HTTP: shards, entries, checkpoints, proofs, receipts, tiles, verification."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import orjson
from msgspec import Meta, Struct

from app.audit.apart import verify_apart
from app.audit.checkpoint import parse_checkpoint
from app.audit.log import NotPublished
from app.audit.merkle import ProofInvalid
from app.audit.note import NoteRefused, parse_note
from app.audit.tiles import TileRefused, parse_path
from app.audit.verify import CannotCheckError
from app.credits.api import CREDITS, book_of, unavailable
from app.credits.permits import no_transaction, sees
from app.credits.reads import decode_cursor, encode_cursor, entries_of
from app.credits.wire import LEGS_MAX, Id
from app.web.answers import Answer
from app.web.body import Body
from app.web.fields import Cursor, Input, Limit
from app.web.problems import Problem, invalid
from app.web.routes import Handled, Route, cursor, json_answer, limit, query

if TYPE_CHECKING:
    from app.audit.log import Log
    from app.web.request import Request

TEXT: Final = "text/plain; charset=utf-8"
OCTETS: Final = "application/octet-stream"
IMMUTABLE: Final = "max-age=31536000, immutable"  # a complete tile never changes; a partial one is superseded, not changed
CHECKPOINT_MAX: Final = 16_384  # characters; a note with a dozen cosignatures has 2,000

Seq = Annotated[int, Meta(ge=0, le=2**48)]
Size = Annotated[int, Meta(ge=1, le=2**48)]
Number = Annotated[int, Meta(ge=0, le=255)]
LegNumber = Annotated[int, Meta(ge=0, lt=LEGS_MAX, description="Of a transfer: the leg, from 0, the first by default.")]
TilePath = Annotated[str, Meta(min_length=1, max_length=64, description="checkpoint, or tile/... as C2SP tlog-tiles says.")]


class Verify(Input, frozen=True):
    """Body of POST /v1/audit/verify: a trusted checkpoint to begin after; all of the ledger without one."""

    checkpoint: Annotated[str, Meta(min_length=1, max_length=CHECKPOINT_MAX)] | None = None


class Verified(Struct):
    """What verification found; first_bad and reason are null where a chain is intact."""

    ok: bool
    shards: list[dict[str, Any]]


def _log(request: Request) -> Log:
    log = request.app[CREDITS].log
    if log is None:
        raise unavailable("The server is starting.")
    return log


def _shard(request: Request) -> int:
    number: int = query(request, "shard", Number, 0)
    return _known(request, number, "?shard")


def _known(request: Request, number: int, pointer: str) -> int:
    count = len(book_of(request).shards)
    if number >= count:
        raise invalid(pointer, f"Expected a shard below {count}")
    return number


def _asked(request: Request, name: str, kind: Any) -> int:
    number: int | None = query(request, name, kind, None)
    if number is None:
        raise invalid(f"?{name}", "Required query parameter is missing")
    return number


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def not_published() -> Problem:
    """Return the refusal for what no signed checkpoint covers yet, or ever."""
    return Problem(
        404, "not_published", "No signed checkpoint covers this; one is signed within a second of an entry.",
        headers={"Retry-After": "1"},
    )  # fmt: skip


async def shards(request: Request) -> Handled:
    """GET /v1/audit/shards."""
    count = limit(request)
    after: int = decode_cursor(cursor(request), int, -1)
    rows = await book_of(request).records.rows(
        "SELECT s.shard, s.head_seq + 1 AS size, encode(s.head_hash, 'hex') AS head, "
        "(SELECT max(c.size) FROM audit_checkpoints c WHERE c.shard = s.shard) AS signed_size "
        "FROM ledger_shards s WHERE s.shard > $1 ORDER BY s.shard LIMIT $2", after, count + 1,
    )  # fmt: skip
    return _page([dict(row) for row in rows], count, "shard")


def _page(data: list[dict[str, Any]], count: int, position: str) -> Handled:
    """Return the first `count` of `data`, and a cursor to the rest if there is one more."""
    following = encode_cursor(data[count - 1][position]) if len(data) > count else None
    return json_answer(orjson.dumps({"data": data[:count], "next_cursor": following}))


async def entries(request: Request) -> Handled:
    """GET /v1/audit/entries."""
    shard, count = _shard(request), limit(request)
    after: int = decode_cursor(cursor(request), int, query(request, "after", Seq, -1))
    rows = await book_of(request).records.rows(
        "SELECT seq, entry, hash, prev_hash, signature, key_id FROM audit_chain "
        "WHERE shard = $1 AND seq > $2 ORDER BY seq LIMIT $3", shard, after, count + 1,
    )  # fmt: skip
    data = [
        {"shard": shard, "seq": seq, "entry": _base64(entry), "hash": digest.hex(), "prev_hash": prev.hex(),
         "signature": signature.hex(), "key_id": key_id}
        for seq, entry, digest, prev, signature, key_id in rows
    ]  # fmt: skip
    return _page(data, count, "seq")


async def checkpoint_of(request: Request) -> Handled:
    """GET /v1/audit/checkpoint."""
    return await _note(request, _shard(request))


async def _note(request: Request, shard: int) -> Handled:
    try:
        published = await _log(request).checkpoint(shard)
    except NotPublished:
        raise not_published() from None
    return Answer(published.note.encode(), content_type=TEXT)


async def keys(request: Request) -> Handled:
    """GET /v1/audit/keys: what the checkpoints of each shard are checked with, and what older ones were signed with."""
    found, log_keys = _log(request).keys, request.app[CREDITS].log_keys
    signing = {(shard, verifier.vkey) for shard in found for verifier in found[shard]}
    noted = await log_keys.known() if log_keys is not None else []
    sizes = {(one.shard, one.vkey): one.from_size for one in noted}
    data: list[dict[str, Any]] = [
        {"shard": shard, "key": key.vkey, "state": "signing", "from_size": sizes.get((shard, key.vkey)), "until_size": None}
        for shard in sorted(found) for key in found[shard]
    ]  # fmt: skip
    data += [
        {"shard": one.shard, "key": one.vkey, "state": "signing" if one.retired_at is None else "retired",
         "from_size": one.from_size, "until_size": one.until_size}
        for one in noted if (one.shard, one.vkey) not in signing
    ]  # fmt: skip
    return json_answer(orjson.dumps({"data": data, "next_cursor": None}))


async def inclusion(request: Request) -> Handled:
    """GET /v1/audit/proof/inclusion."""
    shard, seq = _shard(request), _asked(request, "seq", Seq)
    size: int | None = query(request, "size", Size, None)
    log = _log(request)
    try:
        if size is None:
            size = (await log.checkpoint(shard, seq + 1)).size
        proof = await log.inclusion(shard, seq, size)
    except NotPublished:
        raise not_published() from None
    except ProofInvalid:
        raise invalid("?size", "Expected a size above seq") from None
    return json_answer(orjson.dumps({
        "seq": seq, "size": size, "leaf_hash": _base64(proof.leaf_hash), "hashes": [_base64(h) for h in proof.hashes],
        "root": _base64(proof.root),
    }))  # fmt: skip


async def consistency(request: Request) -> Handled:
    """GET /v1/audit/proof/consistency."""
    shard, first, last = _shard(request), _asked(request, "from", Size), _asked(request, "to", Size)
    try:
        proof = await _log(request).consistency(shard, first, last)
    except NotPublished:
        raise not_published() from None
    except ProofInvalid:
        raise invalid("?to", "Expected a size not below from") from None
    return json_answer(orjson.dumps({
        "from": first, "to": last, "hashes": [_base64(h) for h in proof.hashes],
        "from_root": _base64(proof.root1), "root": _base64(proof.root2), "size": last,
    }))  # fmt: skip


async def receipt(request: Request) -> Handled:
    """GET /v1/audit/receipts/{transaction_id}: of the entry that the transaction names, or of that of another leg."""
    book, identifier = book_of(request), request.match_info["transaction_id"]
    leg: int = query(request, "leg", LegNumber, 0)
    events = await entries_of(book, identifier) or await book.transfers.settled(identifier)
    event = events[leg] if leg < len(events) else None
    if event is None or not sees(request, event.tenant_id):
        raise no_transaction()
    try:
        made = await _log(request).receipt(event.shard, event.seq)
    except NotPublished:
        raise not_published() from None
    return Answer(made.text.encode(), content_type=TEXT)


async def tile(request: Request) -> Handled:
    """GET /tiles/{shard}/...: C2SP tlog-tiles of one shard's log."""
    path = request.match_info["tile"]
    shard = _known(request, int(request.match_info["shard"]), "{shard}")
    if path == "checkpoint":
        return await _note(request, shard)
    try:
        content = await _log(request).tile(shard, parse_path(path))
    except TileRefused:
        raise Problem(404, "not_found", "There is nothing at this path.") from None
    except NotPublished:
        raise not_published() from None
    return Answer(content, content_type=OCTETS, cache=IMMUTABLE)


VERIFY: Final = Body(Verify, optional=True)
_verifying: Final = asyncio.Lock()  # one at a time: it takes a processor


async def verify(request: Request) -> Handled:
    """POST /v1/audit/verify: in a process of its own, so that the event loop goes on."""
    body = await VERIFY.read(request)
    try:
        trusted = None if body.checkpoint is None else parse_checkpoint(parse_note(body.checkpoint.encode()).text)
    except NoteRefused:
        raise invalid("/checkpoint", "Expected the text of a checkpoint of this ledger") from None
    stores = request.app[CREDITS].stores
    book_of(request)
    if _verifying.locked():
        raise unavailable("A verification runs already.")
    async with _verifying:
        try:
            report = await verify_apart(stores.owner_database_url, stores.audit_key, trusted)
        except CannotCheckError:
            raise invalid("/checkpoint", "Expected the text of a checkpoint of this ledger") from None
    found = [
        {"shard": one.shard, "entries": one.entries, "first_bad": None if one.first_bad is None else one.first_bad.seq,
         "reason": None if one.first_bad is None else one.first_bad.reason}
        for one in report.shards
    ]  # fmt: skip
    return json_answer(msgspec.json.encode(Verified(report.ok, found)))


_PAGE_OF_ONE: Final[dict[int, Any]] = {200: dict[str, Any]}
_LATER: Final = ((404, "not_published"), (503, "unavailable"))
_SHARD: Final[dict[str, Any]] = {"shard": Number}
_PAGED: Final[dict[str, Any]] = {"limit": Limit, "cursor": Cursor}

AUDIT_ROUTES: Final = (
    Route("GET", "/v1/audit/shards", shards, summary="List shards, their sizes and heads", tag="audit",
          query=_PAGED, answers=_PAGE_OF_ONE, problems=((503, "unavailable"),)),
    Route("GET", "/v1/audit/entries", entries, summary="Read entries in their order", tag="audit",
          query={**_SHARD, "after": Seq, **_PAGED}, answers=_PAGE_OF_ONE, problems=((503, "unavailable"),)),
    Route("GET", "/v1/audit/checkpoint", checkpoint_of, summary="Read the newest signed checkpoint (C2SP)", tag="audit",
          query=_SHARD, answers={200: None}, media_type=TEXT, problems=_LATER),
    Route("GET", "/v1/audit/keys", keys, summary="List the verifier keys of checkpoints", tag="audit", answers=_PAGE_OF_ONE,
          problems=((503, "unavailable"),)),
    Route("GET", "/v1/audit/proof/inclusion", inclusion, summary="Prove that an entry is in a tree", tag="audit",
          query={**_SHARD, "seq": Seq, "size": Size}, answers=_PAGE_OF_ONE, problems=_LATER),
    Route("GET", "/v1/audit/proof/consistency", consistency, summary="Prove that a tree extends another", tag="audit",
          query={**_SHARD, "from": Size, "to": Size}, answers=_PAGE_OF_ONE, problems=_LATER),
    Route("GET", "/v1/audit/receipts/{transaction_id}", receipt, summary="Read a receipt (C2SP tlog-proof)", tag="audit",
          path_fields={"transaction_id": Id}, query={"leg": LegNumber}, answers={200: None}, media_type=TEXT,
          problems=((404, "no_transaction"), *_LATER)),
    Route("POST", "/v1/audit/verify", verify, summary="Verify the ledger", tag="audit", body=Verify, body_optional=True,
          answers={200: Verified}, problems=((503, "unavailable"),)),
    Route("GET", "/tiles/{shard}/{tile:.+}", tile, summary="Read a log as C2SP tlog-tiles", tag="audit",
          path_fields={"shard": Number, "tile": TilePath}, answers={200: None}, media_type=OCTETS,
          problems=((404, "not_found"), *_LATER)),
)  # fmt: skip
