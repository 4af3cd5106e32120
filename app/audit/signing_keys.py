"""The secret keys that sign checkpoints: seeds of Ed25519, as text in a setting or a file, the newest first. Pure.

While a key is being replaced both sign, so that verifiers who know either of them go on: put the new seed before the old
one, hand the new verifier key out, and take the old seed away when everybody has it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from app.audit.note import Signer

if TYPE_CHECKING:
    from collections.abc import Sequence

SEEDS_MAX: Final = 4  # a rotation has two; each signs every checkpoint, 0.1 ms apiece
_SEED: Final = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)


class SeedsRefused(ValueError):
    """The text is not a list of seeds. It is a secret, so the message does not show it."""


def parse_seeds(text: str) -> tuple[bytes, ...]:
    """Return the 32-byte seeds of a text: 64 hex digits each, separated by commas or white space.

    Raises SeedsRefused for anything else, for none, for more than SEEDS_MAX, and for the same one twice.
    """
    words = text.replace(",", " ").split()
    if not all(_SEED.fullmatch(word) for word in words):
        raise SeedsRefused("Expected seeds of 64 hex digits each")
    seeds = tuple(bytes.fromhex(word) for word in words)
    if not 1 <= len(seeds) <= SEEDS_MAX or len(set(seeds)) < len(seeds):
        raise SeedsRefused(f"Expected 1 to {SEEDS_MAX} different seeds")
    return seeds


def signers_of(seeds: Sequence[bytes], origin: str) -> tuple[Signer, ...]:
    """Return the signers of a log: a key's name is the origin, so each shard has verifier keys of its own."""
    return tuple(Signer(origin, seed) for seed in seeds)
