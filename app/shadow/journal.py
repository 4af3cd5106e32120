"""What an experiment remembers one by one, as 64-bit hashes: events, units, what these got and what they told. Pure."""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HASH_BYTES: Final = 8  # two of ten million items collide with a probability of 3 in a million
UNIT: Final = struct.Struct(">qI")  # hash of the unit, what it got
VARIANT_BITS: Final = 5  # of what a unit got; the rest is the version of the weights
# First letters of items, in the order of Journal.
_KINDS: Final = (b"e", b"u", b"q", b"X", b"S", b"E", b"O")
# Begun once: a copy takes half the time of a new one, and every outcome needs two.
_EVENT: Final = hashlib.blake2b(digest_size=HASH_BYTES, person=b"shieldx event")
_UNIT: Final = hashlib.blake2b(digest_size=HASH_BYTES, person=b"shieldx unit")
_signed: Final = struct.Struct(">q").unpack


def event_number(event_id: str) -> str:
    """Return the 64-bit integer, as text, that stands for an event of an experiment."""
    digest = _EVENT.copy()
    digest.update(event_id.encode())
    return str(_signed(digest.digest())[0])


def unit_number(unit: str) -> str:
    """Return the 64-bit integer, as text, that stands for a unit of an experiment."""
    digest = _UNIT.copy()
    digest.update(unit.encode())
    return str(_signed(digest.digest())[0])


def got(version: int, variant: int) -> int:
    """Return the number that says which variant a unit got, with which version of the weights."""
    return version << VARIANT_BITS | variant


def ungot(number: int) -> tuple[int, int]:
    """Return version and variant of what a unit got."""
    return number >> VARIANT_BITS, number & (1 << VARIANT_BITS) - 1


class Journal(NamedTuple):
    """Items of an experiment's journal, by kind, packed: enrolled units 12 bytes each, all others 8.

    exposed                  units that had an outcome
    successes, errors, over  units that gave the evidence of this kind what a unit may give
    """

    events: bytes
    units: bytes
    odd: bytes
    exposed: bytes
    successes: bytes
    errors: bytes
    over: bytes

    def parts(self) -> tuple[tuple[str, bytes], ...]:
        """Return kind and packed items, as the table has them."""
        return (
            ("event", self.events), ("unit", self.units), ("quarantine", self.odd), ("exposed", self.exposed),
            ("success", self.successes), ("error", self.errors), ("over", self.over),
        )  # fmt: skip


def pack(items: Iterable[bytes]) -> Journal:
    """Pack items as experiment_merge.lua writes them."""
    parts: dict[bytes, list[bytes]] = {kind: [] for kind in _KINDS}
    for item in items:
        parts[item[:1]] += item[1:].split()
    units = parts.pop(b"u")
    packed = {kind: struct.pack(f">{len(found)}q", *map(int, found)) for kind, found in parts.items()}
    packed[b"u"] = b"".join(UNIT.pack(*map(int, unit.split(b"="))) for unit in units)
    return Journal(*(packed[kind] for kind in _KINDS))


def numbers(packed: bytes) -> list[str]:
    """Return packed items of 8 bytes as texts."""
    return [str(one) for (one,) in struct.iter_unpack(">q", packed)]


def pairs(packed: bytes) -> list[str | int]:
    """Return packed enrolled units as unit, what it got, unit, ..."""
    return [part for unit, what in UNIT.iter_unpack(packed) for part in (str(unit), what)]


def unpacked(kind: str, packed: bytes, count: int) -> Iterator[list[str] | list[str | int]]:
    """Yield the items of one row of the table, at most `count` at a time."""
    size = count * (UNIT.size if kind == "unit" else HASH_BYTES)
    for start in range(0, len(packed), size):
        part = packed[start : start + size]
        yield pairs(part) if kind == "unit" else numbers(part)
