"""The text of an API key: how it is made, checked without a store, and stored.

    shx_live_ + 32 base62 characters (190 random bits) + 6 base62 characters of their CRC-32

The checksum is no protection: it refuses a mistyped key without a look at the table, and lets a scanner of source
code tell a leaked key from a word that looks like one. What is stored is the SHA-256 of the whole text: at 190
random bits there is nothing to guess, so neither a slow hash nor a second secret would add anything.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib
from typing import Final

ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PREFIX: Final = "shx_live_"  # what scanners look for
RANDOM_CHARS: Final = 32  # 5.95 bits each: 190 bits, of which 166 stay secret when the first four are shown
CHECKSUM_CHARS: Final = 6  # 62^6 is above 2^32, so every CRC-32 fits
SHOWN_CHARS: Final = 4  # enough to tell a person's few keys apart
ID_CHARS: Final = 16  # 95 bits: ids never meet

ID_PATTERN: Final = rf"^key_[0-9A-Za-z]{{{ID_CHARS}}}\Z"
_shape = re.compile(rf"{PREFIX}([0-9A-Za-z]{{{RANDOM_CHARS}}})([0-9A-Za-z]{{{CHECKSUM_CHARS}}})\Z")


class Secret:
    """The text of a new key. Shown once by whoever asks for `text`; never by repr, str or a log."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        """`text` is the whole key."""
        self.text = text

    def __repr__(self) -> str:
        """Show no secret."""
        return "Secret(...)"

    @property
    def hash(self) -> bytes:
        """What is stored: 32 bytes."""
        return key_hash(self.text)

    @property
    def shown(self) -> str:
        """The beginning by which a person recognises the key."""
        return self.text[: len(PREFIX) + SHOWN_CHARS]


def checksum(text: str) -> str:
    """Return the CRC-32 (zlib's) of ASCII text in base62, most significant first, padded with `0` to six characters."""
    number = zlib.crc32(text.encode("ascii"))
    digits = ""
    for _ in range(CHECKSUM_CHARS):
        number, rest = divmod(number, len(ALPHABET))
        digits = ALPHABET[rest] + digits
    return digits


def new_secret() -> Secret:
    """Return a new key from the operating system's random numbers."""
    random = "".join(secrets.choice(ALPHABET) for _ in range(RANDOM_CHARS))
    return Secret(PREFIX + random + checksum(random))


def new_key_id() -> str:
    """Return a new public id of a key."""
    return "key_" + "".join(secrets.choice(ALPHABET) for _ in range(ID_CHARS))


def is_well_formed(text: str) -> bool:
    """Whether `text` has the form of a key and its checksum is right. Says nothing of whether the key exists."""
    match = _shape.match(text)
    return match is not None and checksum(match[1]) == match[2]


def key_hash(text: str) -> bytes:
    """Return the SHA-256 of a presented key: 32 bytes. Takes any text, also what cannot be UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
