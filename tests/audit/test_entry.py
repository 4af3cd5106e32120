"""Entries, hashes and seals against independent implementations of the same standards."""

from __future__ import annotations

import hashlib
import hmac
import json
import string
from datetime import UTC, datetime

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from app.audit.entry import ENTRY_PREFIX, Event, RowSeal, entry_bytes, entry_hash, genesis_hash
from app.clock import time_text
from app.credits.operation import event_of_entry

AMOUNT_MAX = 10**14 - 1
KEY = b"sixteen bytes key"

amounts = st.integers(0, AMOUNT_MAX)
LETTERS = string.ascii_letters + string.digits
names = st.builds("{}{}".format, st.sampled_from(LETTERS), st.text(LETTERS + "._:-", max_size=63))
digests = st.text(LETTERS + "_-", min_size=22, max_size=22)
ids = st.uuids().map(str)
# Any character that is one: the edge refuses lone surrogates, and U+0000, which no column can hold.
free_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=60)
controls = st.text(
    st.sampled_from([chr(code) for code in [*range(1, 0x20), 0x22, 0x5C, 0x2F, 0x7F, 0x80, 0xFFFF, 0x10FFFF, 0x2028]]),
    max_size=40,
)
details = st.one_of(
    st.none(),
    st.integers(0, 2**52).map(lambda at: f'{{"expires_at_ms":{at}}}'),
    st.tuples(amounts, amounts).map(lambda two: f'{{"consumed":{two[0]},"refunded":{two[1]}}}'),
)
events = st.builds(
    Event,
    shard=st.integers(0, 255), generation=st.integers(1, 2**31), seq=st.integers(0, 2**48),
    at_ms=st.integers(0, 4_102_444_800_000), type=st.sampled_from(["topup", "consume", "settle_out"]),
    tenant_id=names, debit=names.map("tenant:{}".format), credit=st.sampled_from(["system:funding", "system:revenue"]),
    amount=amounts, balance=amounts, reserved=amounts, version=st.integers(1, 2**53 - 1), transaction_id=ids,
    idempotency=st.one_of(st.none(), digests), fingerprint=st.one_of(st.none(), digests), reference=st.one_of(st.none(), ids),
    description=st.one_of(st.none(), free_text, controls), metadata=st.one_of(st.none(), free_text, controls), details=details,
)  # fmt: skip


def record_of(event: Event, prev_hash: bytes) -> dict[str, object]:
    """Return the record as the standard describes it, built without the code under test."""
    fields = {name: getattr(event, name) for name in event.__struct_fields__}
    at = datetime.fromtimestamp(fields.pop("at_ms") // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return fields | {
        "schema": 1, "prev_hash": prev_hash.hex(), "at": f"{at}.{event.at_ms % 1000:03d}Z",
        "details": None if event.details is None else json.loads(event.details),
    }  # fmt: skip


@given(events, st.binary(min_size=32, max_size=32))
def test_an_entry_is_the_prefix_and_the_canonical_json_of_its_record(event: Event, prev_hash: bytes) -> None:
    assert entry_bytes(event, prev_hash) == b"shieldx-audit/v1\n" + rfc8785.dumps(record_of(event, prev_hash))  # type: ignore[arg-type]


@given(events, st.binary(min_size=32, max_size=32))
def test_an_entry_reads_back_as_the_event_that_it_was_made_from(event: Event, prev_hash: bytes) -> None:
    assert event_of_entry(entry_bytes(event, prev_hash)) == event


@given(st.binary(max_size=300))
def test_the_hash_is_that_of_an_rfc_6962_leaf(entry: bytes) -> None:
    assert entry_hash(entry) == hashlib.sha256(b"\x00" + entry).digest()


@given(st.binary(min_size=16, max_size=200), st.binary(min_size=32, max_size=32))
def test_a_seal_is_hmac_sha256(key: bytes, digest: bytes) -> None:
    seal = RowSeal(key)

    assert seal.sign(digest) == hmac.digest(key, digest, "sha256")
    assert seal.matches(digest, hmac.digest(key, digest, "sha256"))
    assert seal.sign(digest) == seal.sign(digest)


def test_a_seal_does_not_match_another_digest_key_or_length() -> None:
    seal, digest = RowSeal(KEY), bytes(32)
    signature = seal.sign(digest)

    assert not seal.matches(b"\x01" + bytes(31), signature)
    assert not RowSeal(KEY + b"!").matches(digest, signature)
    assert not seal.matches(digest, signature[:-1])


def test_the_key_id_names_the_key_and_does_not_give_it_away() -> None:
    key_id = RowSeal(KEY).key_id

    assert key_id == hashlib.sha256(b"shieldx-audit/v1/key-id\n" + KEY).hexdigest()[:16]
    assert key_id != RowSeal(KEY + b"!").key_id
    assert key_id not in {KEY.hex()[:16], hashlib.sha256(KEY).hexdigest()[:16]}


@pytest.mark.parametrize("size", [0, 15])
def test_a_short_key_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        RowSeal(bytes(size))


def test_every_chain_begins_with_a_hash_of_its_own() -> None:
    first, second = genesis_hash("shieldx/a/s00"), genesis_hash("shieldx/a/s01")

    assert first == hashlib.sha256(b"shieldx-audit/v1/genesis\nshieldx/a/s00\n").digest()
    assert first != second


@given(events)
def test_any_change_of_an_event_changes_its_hash(event: Event) -> None:
    first = entry_hash(entry_bytes(event, bytes(32)))

    assert entry_hash(entry_bytes(event, b"\x01" + bytes(31))) != first
    for name in ("amount", "balance", "reserved", "version", "seq", "shard", "generation", "at_ms"):
        setattr(event, name, getattr(event, name) + 1)
        assert entry_hash(entry_bytes(event, bytes(32))) != first
        setattr(event, name, getattr(event, name) - 1)


def test_a_known_entry_has_the_bytes_that_it_always_had() -> None:
    event = Event(
        0, 1, 5, 1_700_000_000_007, "consume", "t1", "tenant:t1", "system:revenue", 3, 97, 10, 4,
        "018bcfe5-6807-7000-8000-000000000005", "k" * 22, "f" * 22, None, 'naïve "x"\n', '{"a":1}', None,
    )  # fmt: skip

    entry = entry_bytes(event, bytes(32))

    assert entry.startswith(ENTRY_PREFIX)
    assert entry[len(ENTRY_PREFIX) :].decode() == (
        '{"amount":3,"at":"2023-11-14T22:13:20.007Z","balance":97,"credit":"system:revenue","debit":"tenant:t1",'
        '"description":"naïve \\"x\\"\\n","details":null,"fingerprint":"ffffffffffffffffffffff","generation":1,'
        '"idempotency":"kkkkkkkkkkkkkkkkkkkkkk","metadata":"{\\"a\\":1}",'
        '"prev_hash":"0000000000000000000000000000000000000000000000000000000000000000","reference":null,"reserved":10,'
        '"schema":1,"seq":5,"shard":0,"tenant_id":"t1","transaction_id":"018bcfe5-6807-7000-8000-000000000005",'
        '"type":"consume","version":4}'
    )


def test_times_have_three_decimals_and_a_z() -> None:
    assert [time_text(at) for at in (0, 1, 999, 1_000)] == [
        "1970-01-01T00:00:00.000Z", "1970-01-01T00:00:00.001Z", "1970-01-01T00:00:00.999Z", "1970-01-01T00:00:01.000Z",
    ]  # fmt: skip
