"""Encrypted fields open where they belong, under their key, unchanged; nowhere and nohow else."""

from __future__ import annotations

import base64
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap_with_padding, aes_key_wrap_with_padding
from hypothesis import given
from hypothesis import strategies as st

from app.privacy import envelope
from app.privacy.envelope import (
    BLOB_OVERHEAD_BYTES,
    PLAIN_MAX_BYTES,
    DataKey,
    MasterKeyRefused,
    MasterKeys,
    Place,
    Sealed,
    associated_data,
    kek_id,
    make_master_key_file,
    read_master_key,
    read_master_keys,
)
from app.privacy.rotation import add_master_key

OLD, NEW = bytes(range(32)), bytes(range(1, 33))
HERE = Place("tenant-1", "subject-1", "record-1", "card_number")
PLAIN = b"4111111111111111"
DEK_ID = bytes(range(16))
KEK_ID = kek_id(OLD)


def key() -> DataKey:
    return DataKey(DEK_ID, NEW)


def test_the_ciphers_are_those_of_the_standards() -> None:
    """AES-256-GCM: McGrew and Viega, test case 16 (in NIST's set). AES-KWP: RFC 5649 section 6, a 192-bit key."""
    gcm = AESGCM(bytes.fromhex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308"))
    plain = bytes.fromhex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
    )
    aad = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")

    sealed = gcm.encrypt(bytes.fromhex("cafebabefacedbaddecaf888"), plain, aad)
    wrapped = aes_key_wrap_with_padding(
        bytes.fromhex("5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8"),
        bytes.fromhex("c37b7e6492584340bed12207808941155068f738"),
    )

    assert sealed[-16:].hex() == "76fc6ece0f4e1768cddf8853bb2d551b"
    assert sealed[:16].hex() == "522dc1f099567d07f47f37a32a84427d"
    assert wrapped.hex() == "138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a"


def test_a_blob_has_the_documented_form(monkeypatch: pytest.MonkeyPatch) -> None:
    nonce = bytes(range(12))
    monkeypatch.setattr(envelope.os, "urandom", lambda size: nonce[:size])

    blob = key().encrypt(PLAIN, HERE, KEK_ID)

    assert blob[:37] == b"\x01" + KEK_ID + DEK_ID + nonce
    aad = b"".join(
        len(part).to_bytes(4, "big") + part
        for part in (b"shieldx-private/v1", b"tenant-1", b"subject-1", b"record-1", b"card_number", DEK_ID, KEK_ID)
    )
    assert AESGCM(NEW).decrypt(nonce, blob[37:], aad) == PLAIN
    assert len(blob) == len(PLAIN) + BLOB_OVERHEAD_BYTES
    assert KEK_ID.hex() == "e2e8f6c3a3271c75"


@given(st.binary(max_size=200), st.tuples(*[st.text(max_size=12)] * 4))
def test_what_was_encrypted_comes_back_in_its_place(plain: bytes, place: tuple[str, str, str, str]) -> None:
    try:
        blob = key().encrypt(plain, Place(*place), KEK_ID)
    except UnicodeEncodeError:
        return

    assert key().decrypt(blob, Place(*place)) == plain


def test_no_nonce_is_used_twice() -> None:
    nonces = {key().encrypt(b"", HERE, KEK_ID)[25:37] for _ in range(1000)}

    assert len(nonces) == 1000


def test_every_flipped_bit_is_found() -> None:
    blob = key().encrypt(PLAIN, HERE, KEK_ID)

    for bit in range(len(blob) * 8):
        broken = bytearray(blob)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Sealed, match=r"^the encrypted data cannot be opened\Z"):
            key().decrypt(bytes(broken), HERE)


@pytest.mark.parametrize("size", range(BLOB_OVERHEAD_BYTES + 1))
def test_a_cut_blob_is_found(size: int) -> None:
    blob = key().encrypt(PLAIN, HERE, KEK_ID)

    with pytest.raises(Sealed):
        key().decrypt(blob[:size], HERE)


@pytest.mark.parametrize(
    "elsewhere",
    [
        HERE._replace(tenant="tenant-2"),
        HERE._replace(subject="subject-2"),
        HERE._replace(record="record-2"),
        HERE._replace(field="cardholder_name"),
        Place("tenant-1subject-1", "", "record-1", "card_number"),
        Place("tenant-", "1subject-1", "record-1", "card_number"),
        Place("tenant-1", "subject-1record-1", "", "card_number"),
    ],
)
def test_a_blob_does_not_open_in_another_place(elsewhere: Place) -> None:
    blob = key().encrypt(PLAIN, HERE, KEK_ID)

    with pytest.raises(Sealed):
        key().decrypt(blob, elsewhere)


@given(st.lists(st.text(max_size=3), min_size=4, max_size=4), st.lists(st.text(max_size=3), min_size=4, max_size=4))
def test_two_places_never_have_the_same_associated_data(one: list[str], other: list[str]) -> None:
    try:
        same = associated_data(Place(*one), DEK_ID) == associated_data(Place(*other), DEK_ID)
    except UnicodeEncodeError:
        return

    assert same == (one == other)


def test_another_key_opens_nothing() -> None:
    blob = key().encrypt(PLAIN, HERE, KEK_ID)

    for other in (DataKey(DEK_ID, OLD), DataKey(bytes(16), NEW)):
        with pytest.raises(Sealed):
            other.decrypt(blob, HERE)


def test_a_data_key_comes_back_from_its_wrapping() -> None:
    masters = MasterKeys([NEW, OLD])
    made, wrapped = masters.make_data_key("subject-1")
    blob = made.encrypt(PLAIN, HERE, masters.current_id)

    opened = masters.unwrap(masters.current_id, wrapped, "subject-1", made.key_id)

    assert len(wrapped) == 40
    assert opened.decrypt(blob, HERE) == PLAIN


def test_a_rewrapped_key_needs_only_the_new_master_key() -> None:
    before = MasterKeys([OLD])
    made, wrapped = before.make_data_key("s")
    blob = made.encrypt(PLAIN, HERE, before.current_id)

    rewrapped = MasterKeys([NEW, OLD]).rewrap(before.current_id, wrapped, "s", made.key_id)

    assert rewrapped != wrapped
    after = MasterKeys([NEW])
    assert after.unwrap(after.current_id, rewrapped, "s", made.key_id).decrypt(blob, HERE) == PLAIN
    with pytest.raises(Sealed):
        after.unwrap(before.current_id, wrapped, "s", made.key_id)


def test_a_wrapped_key_is_bound_to_subject_and_id_and_every_bit_counts() -> None:
    masters = MasterKeys([OLD, NEW])
    made, wrapped = masters.make_data_key("subject-1")
    wrong = [
        (masters.current_id, wrapped, "subject-2", made.key_id),
        (masters.current_id, wrapped, "subject-1", bytes(16)),
        (kek_id(NEW), wrapped, "subject-1", made.key_id),
        (bytes(8), wrapped, "subject-1", made.key_id),
        (masters.current_id, wrapped[:-1], "subject-1", made.key_id),
        (masters.current_id, b"", "subject-1", made.key_id),
    ]
    for bit in range(len(wrapped) * 8):
        broken = bytearray(wrapped)
        broken[bit // 8] ^= 1 << bit % 8
        wrong.append((masters.current_id, bytes(broken), "subject-1", made.key_id))

    for values in wrong:
        with pytest.raises(Sealed):
            masters.unwrap(*values)


def test_the_master_key_itself_wraps_nothing() -> None:
    made, wrapped = MasterKeys([OLD]).make_data_key("s")

    info = b"shieldx wrap v1\n\x00\x00\x00\x01s\x00\x00\x00\x10" + made.key_id

    derived = HKDFExpand(SHA256(), 32, info).derive(OLD)

    assert aes_key_unwrap_with_padding(derived, wrapped) == made._key
    with pytest.raises(InvalidUnwrap):
        aes_key_unwrap_with_padding(OLD, wrapped)


def test_sizes_are_asserted() -> None:
    for key_id, secret in ((DEK_ID, OLD[:16]), (DEK_ID, OLD + b"x"), (b"short", OLD)):
        with pytest.raises(AssertionError):
            DataKey(key_id, secret)
    for nonce in (bytes(8), bytes(16), b""):
        with pytest.raises(AssertionError):
            envelope._seal(OLD, nonce, b"", HERE, KEK_ID, DEK_ID)
    with pytest.raises(AssertionError):
        envelope._seal(OLD[:16], bytes(12), b"", HERE, KEK_ID, DEK_ID)
    with pytest.raises(ValueError, match="at most"):
        key().encrypt(bytes(PLAIN_MAX_BYTES + 1), HERE, KEK_ID)


def test_nothing_secret_is_shown() -> None:
    masters = MasterKeys([OLD, NEW])
    made, _ = masters.make_data_key("s")
    shown = f"{masters!r} {made!r} {masters} {Sealed()!r} {vars(masters).keys()}"

    for secret in (OLD, NEW, made._key):
        assert secret.hex() not in shown
        assert base64.b64encode(secret).decode() not in shown
        assert repr(secret) not in shown
    assert masters.current_id.hex() in shown


@pytest.mark.parametrize(
    "text",
    [
        NEW.hex(),
        NEW.hex().upper(),
        base64.b64encode(NEW).decode(),
        base64.urlsafe_b64encode(NEW).decode().rstrip("="),
        f" {NEW.hex()}\n",
    ],
)
def test_a_master_key_is_read_from_hex_or_base64(text: str) -> None:
    assert read_master_key(text) == NEW


@pytest.mark.parametrize(
    "text", ["", "00" * 31, "00" * 33, "hunter2", base64.b64encode(b"x" * 31).decode(), "g" * 64, "é" * 44]
)
def test_a_text_that_is_no_key_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(MasterKeyRefused, match="master key 3: expected") as refusal:
        read_master_key(text, 3)

    assert not text or text not in str(refusal.value)


def test_master_keys_come_from_the_environment_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "master.keys"
    file.write_text(f"# made today\n{NEW.hex()}\n{base64.b64encode(OLD).decode()}\n")

    from_file = read_master_keys({"SHIELDX_MASTER_KEY_FILE": str(file)})
    from_text = read_master_keys({"SHIELDX_MASTER_KEYS": f"{NEW.hex()},{OLD.hex()}"})

    assert from_file is not None
    assert from_text is not None
    assert from_file.ids == from_text.ids == (kek_id(NEW), kek_id(OLD))
    assert from_file.current_id == kek_id(NEW)
    assert read_master_keys({}) is None


def test_a_master_key_file_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    file = tmp_path / "master.key"

    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: make_master_key_file(file).current_id, range(32)))

    assert len(set(keys)) == 1
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["master.key"]
    file.write_text("# nothing\n")
    with pytest.raises(MasterKeyRefused):
        make_master_key_file(file)


def test_a_new_master_key_survives_a_power_cut_before_anything_is_wrapped_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "master.key"
    durable: list[tuple[str, ...]] = []
    fsync = os.fsync

    def seen(descriptor: int) -> None:
        fsync(descriptor)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            durable.append(tuple(file.read_text().split()))

    monkeypatch.setattr(os, "fsync", seen)

    made, added = make_master_key_file(file), add_master_key(file)

    assert [tuple(kek_id(bytes.fromhex(key)) for key in keys) for keys in durable] == [made.ids, added.ids]


@pytest.mark.parametrize(
    "environment",
    [
        {"SHIELDX_MASTER_KEYS": NEW.hex(), "SHIELDX_MASTER_KEY_FILE": "x"},
        {"SHIELDX_MASTER_KEYS": f"{NEW.hex()},{NEW.hex()}"},
        {"SHIELDX_MASTER_KEYS": "00" * 32},
        {"SHIELDX_MASTER_KEYS": ",".join(os.urandom(32).hex() for _ in range(17))},
        {"SHIELDX_MASTER_KEYS": "nonsense"},
    ],
)
def test_master_keys_that_cannot_be_are_refused(environment: dict[str, str]) -> None:
    with pytest.raises(MasterKeyRefused):
        read_master_keys(environment)
