"""All that Redis holds of the registry, as the feed reads it: what of it this replica does not know already.

Decoding an instance is most of the cost of taking it over. It is done here, while the rest is still being read, and
touches nothing that anybody else sees.
"""

from __future__ import annotations

from sys import intern
from typing import TYPE_CHECKING, Final, NamedTuple

from app.locator.record import Fact, Record, split_field

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

    from app.locator.directory import Directory


class End(NamedTuple):
    """The end of an instance: at which revision, of which generation, and whether somebody has asked for it."""

    revision: int
    generation: str
    asked: bool


Forgotten = tuple[str, Record | End]  # the field of what Redis has forgotten, and what this replica knows of it


class Reading:
    """One reading of the whole registry.

    revision  of Redis, before the first instance was read
    same      whether it is the data that this process has seen before: then what is missing and older has ended, and
              what is older than it is known here was forgotten
    kept      fields that Redis has forgotten still: an earlier reading found them, and they are not laid again yet
    seen      ids by service: all that were read
    held      of them, by service and id, those that this replica knew otherwise, or has not heard
    """

    __slots__ = ("_directory", "held", "kept", "revision", "same", "seen")

    def __init__(self, directory: Directory, revision: int, *, same: bool, kept: AbstractSet[str] = frozenset()) -> None:
        """Begin with nothing read."""
        self.revision: Final = revision
        self.same: Final = same
        self.kept: Final = kept
        self.seen: dict[str, set[str]] = {}
        self.held: dict[str, dict[str, Record]] = {}
        self._directory = directory

    def add(self, field: str, fact: Fact, now_s: float) -> None:
        """Take note of one instance; a field that comes twice counts as it came last."""
        service, id_ = split_field(field)
        service = intern(service)  # one text for all of a service
        ids = self.seen.get(service)
        if ids is None:
            ids = self.seen[service] = set()
        ids.add(id_)
        known = self._directory.find(service, id_)
        if known is not None and self.same and known.verified and (known.revision, known.generation) == fact[0:5:4]:
            return
        held = self.held.get(service)
        if held is None:
            held = self.held[service] = {}
        held[id_] = Record(service, id_ if known is None else known.instance.id, fact, now_s, verified=False)

    def fields(self) -> Iterator[str]:
        """Yield the fields of what is held."""
        for service, held in self.held.items():
            for id_ in held:
                yield f"{service}/{id_}"
