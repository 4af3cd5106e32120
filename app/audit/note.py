"""C2SP signed notes: text, a blank line, signature lines. Ed25519 (type 0x01) and cosignatures (type 0x04). Pure.

    <text, ends in a newline>
    <blank line>
    EM-DASH <key name> <base64 of key id (4 bytes) and signature>

Sources: https://c2sp.org/signed-note, https://c2sp.org/tlog-cosignature. Parsing is strict: one text has one spelling.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

if TYPE_CHECKING:
    from collections.abc import Sequence

ED25519: Final = 0x01
COSIGNATURE: Final = 0x04
DASH: Final = "\u2014"  # em dash; a hyphen starts no signature line
KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
_KEY_ID_BYTES: Final = 4
_TIME_BYTES: Final = 8
SIGNATURES_MAX: Final = 100  # the specification asks for 16 at least
NOTE_BYTES_MAX: Final = 1 << 20  # 100 signatures of the largest known kind are half of this
TIME_MAX_S: Final = 2**63 - 1

_CONTROL: Final = re.compile("[\x00-\x09\x0b-\x1f\x7f]")
_KEY_HASH: Final = re.compile(r"[0-9a-f]{8}", re.ASCII)
_FIELD_PRIME: Final = 2**255 - 19
# y coordinates of the points whose order divides 8: with such a key anybody can make signatures. RFC 7748, section 7.
_SMALL_ORDER_Y: Final = frozenset({
    0, 1, _FIELD_PRIME - 1,
    int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"),
    int.from_bytes(bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), "little"),
})  # fmt: skip


class NoteRefused(ValueError):
    """The note, key or signature is not to be trusted; the text says why."""


class Signature(NamedTuple):
    """One signature line: the name and id of the key, and the bytes that it made (with the time, of a cosignature)."""

    name: str
    key_id: bytes
    payload: bytes

    @property
    def line(self) -> str:
        """The line as it stands in a note, with its newline."""
        return f"{DASH} {self.name} {encode64(self.key_id + self.payload)}\n"


class Note(NamedTuple):
    """A note taken apart. Nothing in it is to be believed before `verify` has accepted it."""

    text: str
    signatures: tuple[Signature, ...]


class Verified(NamedTuple):
    """A signature that holds; `time_s` is when a cosigner says that it signed, None of other signatures."""

    verifier: Verifier
    time_s: int | None


def encode64(data: bytes) -> str:
    """Return standard base64, with padding: RFC 4648, section 4."""
    return base64.b64encode(data).decode()


def decode64(text: str, what: str) -> bytes:
    """Return the bytes of standard base64 in its one canonical spelling. Raises NoteRefused that names `what`."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise NoteRefused(f"{what} is not base64") from None
    if encode64(data) != text:
        raise NoteRefused(f"{what} is not in canonical base64")
    return data


def check_name(name: str) -> None:
    """Raise NoteRefused unless this can be the name of a key: not empty, no spaces, no plus, no control characters."""
    if not name or "+" in name or not name.isprintable() or any(letter.isspace() for letter in name):
        raise NoteRefused("a key name is empty, or has a space, a plus or a control character")


def _key_id(name: str, kind: int, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + public).digest()[:_KEY_ID_BYTES]


class Verifier:
    """A public key that signatures are checked with: of a log (type 0x01) or of a witness (type 0x04)."""

    def __init__(self, name: str, kind: int, public: bytes) -> None:
        """`public` is an Ed25519 key of RFC 8032. Raises NoteRefused for one that no honest signer has."""
        check_name(name)
        if kind not in {ED25519, COSIGNATURE}:
            raise NoteRefused(f"keys of type 0x{kind:02x} are not known here")
        if len(public) != KEY_BYTES:
            raise NoteRefused(f"an Ed25519 key has {KEY_BYTES} bytes, not {len(public)}")
        y = int.from_bytes(public, "little") & ((1 << 255) - 1)
        if y >= _FIELD_PRIME or y in _SMALL_ORDER_Y:
            raise NoteRefused("the key is a point of small order, or not in canonical form")
        self.name: Final = name
        self.kind: Final = kind
        self.public: Final = public
        self.key_id: Final = _key_id(name, kind, public)
        self._key = Ed25519PublicKey.from_public_bytes(public)

    @classmethod
    def from_vkey(cls, vkey: str) -> Verifier:
        """Return the verifier of a `name+hash+key` text. Raises NoteRefused."""
        name, first, rest = vkey.partition("+")
        key_hash, second, encoded = rest.partition("+")
        if not first or not second or _KEY_HASH.fullmatch(key_hash) is None:
            raise NoteRefused("a verifier key is written as name+hash+key, the hash as 8 lower-case hex digits")
        data = decode64(encoded, "the verifier key")
        if not data:
            raise NoteRefused("the verifier key is empty")
        verifier = cls(name, data[0], data[1:])
        if verifier.key_id.hex() != key_hash:
            raise NoteRefused("the hash in the verifier key is not that of the key")
        return verifier

    @property
    def vkey(self) -> str:
        """The text by which the key is given to people: name+hash+key."""
        return f"{self.name}+{self.key_id.hex()}+{encode64(bytes([self.kind]) + self.public)}"

    def __repr__(self) -> str:
        """Show the public text."""
        return f"Verifier({self.vkey!r})"

    def check(self, text: str, payload: bytes) -> Verified:
        """Check the bytes of a signature line against a note's text. Raises NoteRefused."""
        message, signature, time_s = text.encode(), payload, None
        if self.kind == COSIGNATURE:
            time_s = int.from_bytes(payload[:_TIME_BYTES], "big")
            message, signature = cosigned(text, time_s), payload[_TIME_BYTES:]
            if time_s > TIME_MAX_S:
                raise NoteRefused(f"the time of the cosignature of {self.name} is out of range")
        if len(signature) != SIGNATURE_BYTES:
            raise NoteRefused(f"the signature of {self.name} has a wrong length")
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            raise NoteRefused(f"the signature of {self.name} is wrong") from None
        return Verified(self, time_s)


def cosigned(text: str, time_s: int) -> bytes:
    """Return what a witness signs who has seen the checkpoint `text` at `time_s`, Unix seconds."""
    return f"cosignature/v1\ntime {time_s}\n{text}".encode()


class Signer:
    """A secret Ed25519 key under a name. It signs notes as a log does, or cosigns them as a witness does."""

    def __init__(self, name: str, seed: bytes, kind: int = ED25519) -> None:
        """`seed` is 32 bytes of secret."""
        if len(seed) != KEY_BYTES:
            raise NoteRefused(f"a signing key is a seed of {KEY_BYTES} bytes, not {len(seed)}")
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.verifier: Final = Verifier(name, kind, self._key.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        """Show no secret."""
        return f"Signer({self.verifier.vkey!r})"

    def sign(self, text: str) -> Signature:
        """Return the signature line of a log for a note's text."""
        assert self.verifier.kind == ED25519, "a witness states the time"
        return Signature(self.verifier.name, self.verifier.key_id, self._key.sign(text.encode()))

    def cosign(self, text: str, time_s: int) -> Signature:
        """Return the line of a witness who has seen the checkpoint `text` at `time_s`, Unix seconds."""
        assert self.verifier.kind == COSIGNATURE, "a log states no time"
        payload = time_s.to_bytes(_TIME_BYTES, "big") + self._key.sign(cosigned(text, time_s))
        return Signature(self.verifier.name, self.verifier.key_id, payload)


def sign_note(text: str, signers: Sequence[Signer]) -> str:
    """Return the note of `text` with one signature line for each signer: several while keys are being rotated.

    Raises NoteRefused when the text cannot be that of a note.
    """
    note = text + "\n" + "".join(signer.sign(text).line for signer in signers)
    if parse_note(note).text != text:
        raise NoteRefused("the text holds what would be taken for signatures")
    return note


def parse_note(note: str | bytes) -> Note:
    """Take a note apart, strictly, without checking its signatures. Raises NoteRefused."""
    data = note.encode("utf-8", "surrogatepass") if isinstance(note, str) else note
    if len(data) > NOTE_BYTES_MAX:
        raise NoteRefused(f"the note is longer than {NOTE_BYTES_MAX} bytes")
    try:
        whole = data.decode()
    except UnicodeDecodeError:
        raise NoteRefused("the note is not UTF-8") from None
    if _CONTROL.search(whole):
        raise NoteRefused("the note holds a control character")
    if not whole.endswith("\n"):
        raise NoteRefused("the note does not end in a newline")
    text, blank, lines = whole.rpartition("\n\n")
    if not blank or not text:
        raise NoteRefused("the note has no blank line before its signatures")
    return Note(text + "\n", parse_signatures(lines))


def parse_signatures(lines: str) -> tuple[Signature, ...]:
    """Return the signatures of signature lines, each with its newline: at least one. Raises NoteRefused."""
    *given, rest = lines.split("\n")
    if rest or not given or len(given) > SIGNATURES_MAX:
        raise NoteRefused(f"there are not 1 to {SIGNATURES_MAX} whole signature lines")
    signatures = tuple(_signature(line) for line in given)
    if len({(one.name, one.key_id) for one in signatures}) < len(signatures):
        raise NoteRefused("a key has signed twice")
    return signatures


def _signature(line: str) -> Signature:
    mark, first, rest = line.partition(" ")
    name, second, encoded = rest.partition(" ")
    if mark != DASH or not first or not second:
        raise NoteRefused("a signature line is not an em dash, a key name and base64")
    check_name(name)
    data = decode64(encoded, "a signature")
    if len(data) <= _KEY_ID_BYTES:
        raise NoteRefused("a signature is too short")
    return Signature(name, data[:_KEY_ID_BYTES], data[_KEY_ID_BYTES:])


def verify(note: Note, verifiers: Sequence[Verifier]) -> list[Verified]:
    """Return the signatures of known keys, all of which hold; those of other keys are ignored.

    Raises NoteRefused when one of a known key is wrong, or when there is none.
    """
    known = {(verifier.name, verifier.key_id): verifier for verifier in verifiers}
    verified = [
        known[one.name, one.key_id].check(note.text, one.payload)
        for one in note.signatures if (one.name, one.key_id) in known
    ]  # fmt: skip
    if not verified:
        raise NoteRefused("no known key has signed the note")
    return verified
