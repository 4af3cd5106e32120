"""Encrypted fields: AES-256-GCM under a data key of the subject, which is wrapped by a master key (AES-KWP).

blob = version(1) | kek id(8) | dek id(16) | nonce(12) | ciphertext | tag(16)
aad  = "shieldx-private/v1", tenant, subject, record, field, dek id, kek id, each after its length (4 bytes, big-endian)

The associated data binds a blob to its place: it opens nowhere else. A nonce is random; a data key encrypts far fewer than
the 2^32 messages that NIST SP 800-38D allows. Wrapping is RFC 5649 (SP 800-38F): 32 bytes become 40. GCM commits to no
key, so the id of the data key stands in the associated data, and a key is wrapped under a key derived for its subject.
Nothing here shows a key: not in `repr`, not in errors.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import struct
from base64 import b64decode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import (
    InvalidUnwrap,
    aes_key_unwrap_with_padding,
    aes_key_wrap_with_padding,
)

from app.embedded.directory import make_secret

VERSION: Final = 1
KEY_BYTES: Final = 32  # AES-256; the library would take 16 as well
NONCE_BYTES: Final = 12  # the library would take 8 to 128; only 12 is used without hashing
TAG_BYTES: Final = 16
KEK_ID_BYTES: Final = 8
DEK_ID_BYTES: Final = 16
WRAPPED_BYTES: Final = 40
PLAIN_MAX_BYTES: Final = 64 * 1024  # a field of payment data has below 100; a larger one is a mistake
MASTER_KEYS_MAX: Final = 16  # one is current, the others are there to unwrap what is older
AAD_LABEL: Final = b"shieldx-private/v1"

_HEADER: Final = struct.Struct(f"!B{KEK_ID_BYTES}s{DEK_ID_BYTES}s{NONCE_BYTES}s")
_LENGTH: Final = struct.Struct("!I")
BLOB_OVERHEAD_BYTES: Final = _HEADER.size + TAG_BYTES


class Sealed(Exception):
    """The data cannot be opened: it is damaged, stands elsewhere, or its key is gone. Says no more on purpose."""

    def __init__(self) -> None:
        """All causes look alike."""
        super().__init__("the encrypted data cannot be opened")


class MasterKeyRefused(Exception):
    """A master key has a form that cannot be; the text names the entry by its number, never its value."""


class Place(NamedTuple):
    """Where an encrypted field stands. Blobs cannot be moved to another one."""

    tenant: str
    subject: str
    record: str
    field: str


class DataKey:
    """The key of one subject, in the clear for as long as it is used."""

    __slots__ = ("_key", "key_id")

    def __init__(self, key_id: bytes, key: bytes) -> None:
        """`key_id` is 16 bytes, `key` 32."""
        if len(key_id) != DEK_ID_BYTES or len(key) != KEY_BYTES:
            raise AssertionError("a data key has 32 bytes and an id of 16")
        self.key_id: Final = key_id
        self._key: Final = key

    def __repr__(self) -> str:
        """Show the id only."""
        return f"DataKey({self.key_id.hex()})"

    def encrypt(self, plain: bytes, place: Place, kek_id: bytes) -> bytes:
        """Return the blob of a field's value. `kek_id` names the master key that wraps this key now."""
        if len(plain) > PLAIN_MAX_BYTES:
            raise ValueError(f"a private field holds at most {PLAIN_MAX_BYTES} bytes")
        nonce = os.urandom(NONCE_BYTES)
        return _seal(self._key, nonce, plain, place, kek_id, self.key_id)

    def decrypt(self, blob: bytes, place: Place) -> bytes:
        """Return the value of a field. Raises Sealed."""
        if not BLOB_OVERHEAD_BYTES <= len(blob) <= BLOB_OVERHEAD_BYTES + PLAIN_MAX_BYTES:
            raise Sealed
        version, kek_id, dek_id, nonce = _HEADER.unpack_from(blob)
        if version != VERSION or not hmac.compare_digest(dek_id, self.key_id):
            raise Sealed
        try:
            aad = associated_data(place, self.key_id) + _part(kek_id)
            return AESGCM(self._key).decrypt(nonce, blob[_HEADER.size :], aad)
        except InvalidTag:
            raise Sealed from None


def _seal(key: bytes, nonce: bytes, plain: bytes, place: Place, kek_id: bytes, dek_id: bytes) -> bytes:
    if len(key) != KEY_BYTES or len(nonce) != NONCE_BYTES or len(kek_id) != KEK_ID_BYTES:
        raise AssertionError("keys have 32 bytes, nonces 12, ids of master keys 8")
    sealed = AESGCM(key).encrypt(nonce, plain, associated_data(place, dek_id) + _part(kek_id))
    return _HEADER.pack(VERSION, kek_id, dek_id, nonce) + sealed


def _part(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


def associated_data(place: Place, dek_id: bytes) -> bytes:
    """Return what a blob is bound to; with lengths, so that no two places have the same."""
    return b"".join(map(_part, (AAD_LABEL, *(text.encode() for text in place), dek_id)))


class MasterKeys:
    """The keys that wrap data keys, by id; the current one wraps, all unwrap."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        """The first key is the current one. Each has 32 bytes; raises MasterKeyRefused."""
        if not 1 <= len(keys) <= MASTER_KEYS_MAX:
            raise MasterKeyRefused(f"expected 1 to {MASTER_KEYS_MAX} master keys, not {len(keys)}")
        for number, key in enumerate(keys, 1):
            if len(key) != KEY_BYTES:
                raise MasterKeyRefused(f"master key {number}: expected {KEY_BYTES} bytes")
            if len(set(key)) == 1:
                raise MasterKeyRefused(f"master key {number}: all bytes are the same")
        self._keys = {kek_id(key): key for key in keys}
        if len(self._keys) != len(keys):
            raise MasterKeyRefused("a master key is given twice")
        self.current_id: Final = kek_id(keys[0])

    def __repr__(self) -> str:
        """Show the ids only."""
        return f"MasterKeys({', '.join(key_id.hex() for key_id in self._keys)})"

    @property
    def ids(self) -> tuple[bytes, ...]:
        """Ids of all keys, the current one first."""
        return tuple(self._keys)

    def make_data_key(self, subject: str) -> tuple[DataKey, bytes]:
        """Return a new data key of a subject, and the wrapped form to be stored."""
        key = DataKey(secrets.token_bytes(DEK_ID_BYTES), secrets.token_bytes(KEY_BYTES))
        return key, self._wrap(self.current_id, key._key, subject, key.key_id)  # noqa: SLF001 - the one who may see it

    def unwrap(self, wrapped_by: bytes, wrapped: bytes, subject: str, dek_id: bytes) -> DataKey:
        """Return the data key that was wrapped for this subject under this id. Raises Sealed."""
        return DataKey(dek_id, self._unwrap(wrapped_by, wrapped, subject, dek_id))

    def rewrap(self, wrapped_by: bytes, wrapped: bytes, subject: str, dek_id: bytes) -> bytes:
        """Return the same data key wrapped by the current master key. Raises Sealed."""
        return self._wrap(self.current_id, self._unwrap(wrapped_by, wrapped, subject, dek_id), subject, dek_id)

    def _wrap(self, by: bytes, key: bytes, subject: str, dek_id: bytes) -> bytes:
        return aes_key_wrap_with_padding(_wrapping_key(self._keys[by], subject, dek_id), key)

    def _unwrap(self, by: bytes, wrapped: bytes, subject: str, dek_id: bytes) -> bytes:
        master = self._keys.get(by)
        if master is None or len(wrapped) != WRAPPED_BYTES or len(dek_id) != DEK_ID_BYTES:
            raise Sealed
        try:
            key = aes_key_unwrap_with_padding(_wrapping_key(master, subject, dek_id), wrapped)
        except InvalidUnwrap:
            raise Sealed from None
        if len(key) != KEY_BYTES:
            raise Sealed
        return key


def _wrapping_key(master: bytes, subject: str, dek_id: bytes) -> bytes:
    """Return the key that wraps one subject's key: AES-KWP has no associated data, so a key derived for it binds it.

    Source: HKDF-Expand (RFC 5869) of one block, from a master key that is uniform already.
    """
    return hmac.digest(master, b"shieldx wrap v1\n" + _part(subject.encode()) + _part(dek_id) + b"\x01", "sha256")


def kek_id(key: bytes) -> bytes:
    """Return the 8-byte id of a master key: a hash under a label of its own, which tells nothing of the key."""
    return hashlib.sha256(b"shieldx master key id v1\n" + key).digest()[:KEK_ID_BYTES]


def read_master_key(text: str, number: int = 1) -> bytes:
    """Return the 32 bytes of a key as 64 hexadecimal digits or as base64 of either alphabet.

    Raises MasterKeyRefused, which names the key by its number.
    """
    text = text.strip()
    if re.fullmatch(r"[0-9A-Fa-f]{64}", text):
        return bytes.fromhex(text)
    if re.fullmatch(r"[A-Za-z0-9+/_-]{43}=?", text):
        return b64decode(text.rstrip("=").replace("-", "+").replace("_", "/") + "=", validate=True)
    raise MasterKeyRefused(f"master key {number}: expected 64 hexadecimal digits or 44 characters of base64 (32 bytes)")


def read_master_keys(environment: Mapping[str, str]) -> MasterKeys | None:
    """Return the master keys of SHIELDX_MASTER_KEYS, or of the file that SHIELDX_MASTER_KEY_FILE names; None without both.

    Keys are separated by commas or lines; the first is the current one; lines that begin with # are notes.
    Raises MasterKeyRefused; OSError when the file cannot be read.
    """
    text = environment.get("SHIELDX_MASTER_KEYS", "")
    path = environment.get("SHIELDX_MASTER_KEY_FILE", "")
    if text and path:
        raise MasterKeyRefused("set SHIELDX_MASTER_KEYS or SHIELDX_MASTER_KEY_FILE, not both")
    if path:
        text = Path(path).read_text(encoding="ascii", errors="replace")
    if not text.strip():
        return None
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    parts = [part for line in lines for part in line.split(",") if part.strip()]
    return MasterKeys([read_master_key(part, number) for number, part in enumerate(parts, 1)])


def make_master_key_file(path: Path) -> MasterKeys:
    """Return the master keys of a file, which is made with one new key and mode 0600 if it is missing.

    Two processes that start together end up with the same key: the file appears whole or not at all.
    Raises MasterKeyRefused; OSError when the directory cannot be written.
    """
    if not path.exists():
        make_secret(path, secrets.token_hex(KEY_BYTES))
    keys = read_master_keys({"SHIELDX_MASTER_KEY_FILE": str(path)})
    if keys is None:
        raise MasterKeyRefused(f"{path} holds no master key")
    return keys
