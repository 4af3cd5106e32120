"""C2SP checkpoints: what a log says about its tree, as the text of a signed note. Pure.

    <origin>
    <size, decimal>
    <base64 of the root>

Source: https://c2sp.org/tlog-checkpoint. Ours have no further lines, because no monitor can audit such lines.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from app.audit.entry import HASH_BYTES
from app.audit.merkle import EMPTY_ROOT, SIZE_MAX
from app.audit.note import ED25519, Note, NoteRefused, Signer, Verified, decode64, encode64, parse_note, sign_note, verify

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.audit.note import Verifier

# Python's int() also takes "1_000", " 5", "05" and the digits of other scripts.
_DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)


class Checkpoint(NamedTuple):
    """The tree of a log: its origin, number of leaves and root. `extensions` are lines that some logs add."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The text of the note."""
        return "".join(f"{line}\n" for line in (self.origin, self.size, encode64(self.root), *self.extensions))


class Opened(NamedTuple):
    """A checkpoint whose note was verified, and the signatures of known keys under it."""

    checkpoint: Checkpoint
    signatures: list[Verified]


def parse_decimal(text: str, what: str) -> int:
    """Return a number from 0 to 2^63 - 1 in its one spelling. Raises NoteRefused that names `what`."""
    if _DECIMAL.fullmatch(text) is None or int(text) > SIZE_MAX:
        raise NoteRefused(f"{what} is not a decimal number from 0 to {SIZE_MAX}")
    return int(text)


def parse_checkpoint(text: str) -> Checkpoint:
    """Return the checkpoint that a note's text states. Raises NoteRefused. Says nothing about who signed it."""
    *lines, rest = text.split("\n")
    if rest or len(lines) < 3 or not all(lines):
        raise NoteRefused("a checkpoint is not at least three lines: origin, size, root")
    origin, size_text, root_text, *extensions = lines
    size, root = parse_decimal(size_text, "the size"), decode64(root_text, "the root")
    if len(root) != HASH_BYTES:
        raise NoteRefused(f"the root is not {HASH_BYTES} bytes long")
    if size == 0 and root != EMPTY_ROOT:
        raise NoteRefused("the root of the empty tree is another one")
    return Checkpoint(origin, size, root, tuple(extensions))


def sign_checkpoint(checkpoint: Checkpoint, signers: Sequence[Signer]) -> str:
    """Return the note of a checkpoint, signed by each of the log's keys. Their name has to be the origin."""
    assert all(signer.verifier.name == checkpoint.origin for signer in signers), "a log signs under its origin"
    return sign_note(checkpoint.text, signers)


def open_checkpoint(note: str | bytes | Note, verifiers: Sequence[Verifier]) -> Opened:
    """Return the checkpoint of a note that a known key of the log has signed, with what known witnesses add.

    Raises NoteRefused: a bad form, a wrong signature of a known key, or none of the log itself, whose name is the origin.
    """
    parsed = note if isinstance(note, Note) else parse_note(note)
    verified = verify(parsed, verifiers)
    checkpoint = parse_checkpoint(parsed.text)
    if not any(one.verifier.kind == ED25519 and one.verifier.name == checkpoint.origin for one in verified):
        raise NoteRefused("no known key of the log that the checkpoint names has signed it")
    return Opened(checkpoint, verified)
