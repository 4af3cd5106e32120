"""What a verifier knows from elsewhere: keys of logs, checkpoints that it trusts, sizes that it remembers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from app.audit.checkpoint import Checkpoint, open_checkpoint, parse_checkpoint, parse_decimal
from app.audit.log import log_origin
from app.audit.note import NoteRefused, Verifier, parse_note

if TYPE_CHECKING:
    from collections.abc import Sequence

_REMEMBERED: Final = re.compile(r"(?:([0-9]{1,4}):)?([0-9]{1,19})", re.ASCII)


class TrustRefused(Exception):
    """A key, checkpoint or size that was given is not one; the text says which and why."""


class Trust(NamedTuple):
    """Keys by which checkpoints are verified, trusted checkpoints by origin, and remembered sizes by shard.

    checkpoints  where to begin: what lies below them is not read
    passed       trees that the chains must have had at those sizes, however much is read
    """

    keys: tuple[Verifier, ...] = ()
    checkpoints: dict[str, Checkpoint] = {}  # noqa: RUF012 - never changed, and a NamedTuple shares its defaults anyway
    sizes: dict[int, int] = {}  # noqa: RUF012
    passed: tuple[Checkpoint, ...] = ()

    def keys_of(self, origin: str) -> list[Verifier]:
        """Return the keys under whose name the log signs."""
        return [key for key in self.keys if key.name == origin]

    def passed_by(self, origin: str) -> list[Checkpoint]:
        """Return the trees that this log must have had, the smallest first."""
        return sorted((one for one in self.passed if one.origin == origin), key=lambda one: one.size)

    def unknown_log(self, ledger_origin: str, shard_count: int) -> str | None:
        """Return a log of which something is known although a ledger of so many shards does not have it."""
        names = [*(key.name for key in self.keys), *self.checkpoints, *(one.origin for one in self.passed)]
        names += [log_origin(ledger_origin, shard) for shard in self.sizes]
        return next(iter(set(names) - {log_origin(ledger_origin, shard) for shard in range(shard_count)}), None)


def read_trust(
    vkeys: Sequence[str], checkpoint_files: Sequence[Path], sizes: Sequence[str], passed_files: Sequence[Path] = ()
) -> Trust:
    """Return what the words of a command line say: verifier keys, files of signed checkpoints, `[SHARD:]SIZE`.

    A checkpoint of a log for which a key is given has to be signed by it; without a key the file itself is trusted.
    Raises TrustRefused.
    """
    keys = read_keys(vkeys)
    checkpoints = {one.origin: one for one in (_trusted(path, keys) for path in checkpoint_files)}
    passed = tuple(_trusted(path, keys) for path in passed_files)
    return Trust(keys, checkpoints, dict(_remembered(text) for text in sizes), passed)


def _trusted(path: Path, keys: Sequence[Verifier]) -> Checkpoint:
    try:
        data = path.read_bytes()
        checkpoint = parse_checkpoint(parse_note(data).text)
        known = [key for key in keys if key.name == checkpoint.origin]
        if known:
            open_checkpoint(data, known)
    except (OSError, NoteRefused) as error:
        raise TrustRefused(f"{path}: {error}") from None
    return checkpoint


def read_keys(vkeys: Sequence[str]) -> tuple[Verifier, ...]:
    """Return the verifiers of verifier key texts. Raises TrustRefused."""
    try:
        return tuple(Verifier.from_vkey(vkey) for vkey in vkeys)
    except NoteRefused as error:
        raise TrustRefused(f"the key cannot be used: {error}") from None


def _remembered(text: str) -> tuple[int, int]:
    match = _REMEMBERED.fullmatch(text)
    if match is None:
        raise TrustRefused(f"a remembered size is written as SIZE or SHARD:SIZE, not {text!r}")
    try:
        return int(match[1] or 0), parse_decimal(match[2], "the remembered size")
    except NoteRefused as error:
        raise TrustRefused(str(error)) from None
