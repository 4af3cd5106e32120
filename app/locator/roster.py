"""The instances of one service in this process: their records, the snapshot that all read, and its last changes."""

from __future__ import annotations

import random
from collections import deque
from typing import TYPE_CHECKING, Final

from app.locator.instance import Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable

    from app.locator.record import Record

HISTORY_MAX: Final = 256  # changes of a service that a watcher may have missed and still gets singly
# Revisions that this replica makes by itself lie up to so far above those of Redis, at random: a watcher that goes from one
# replica to another must not find there, under the number it has seen, something else than what it has seen.
OWN_STEP_MAX: Final = 1 << 16


def own_after(revision: int) -> int:
    """Return a revision for a change that this replica makes by itself, above what it stands at."""
    return revision + 1 + random.randrange(OWN_STEP_MAX)  # noqa: S311 - apart, not secret


class Roster:
    """The instances of one service. `history` holds (revision before, revision, ids that changed) of the last changes."""

    __slots__ = ("empty_since_s", "history", "name", "records", "snapshot")

    def __init__(self, name: str, revision: int, now_s: float) -> None:
        """Begin without instances, at the revision before the first change."""
        self.name: Final = name
        self.records: dict[str, Record] = {}
        self.snapshot = Snapshot.of(name, (), revision)
        self.history: deque[tuple[int, int, tuple[str, ...]]] = deque(maxlen=HISTORY_MAX)
        self.empty_since_s = now_s

    def publish(self, ids: Iterable[str], revision: int) -> bool:
        """Swap the snapshot for one in which these ids are as their records say.

        Returns whether the catalogue has changed: which ids there are, and their tags.
        """
        put, removed = [], []
        known = self.snapshot.by_id
        for id_ in ids:
            record = self.records.get(id_)
            if record is None:
                removed.append(id_)
            else:
                put.append(record.instance)
        anew = bool(removed) or any(one.id not in known or known[one.id].tags != one.tags for one in put)
        before = self.snapshot.revision
        self.snapshot = self.snapshot.evolve(put, removed, revision=revision if revision > before else own_after(before))
        self.history.append((before, self.snapshot.revision, self.snapshot.changed))
        return anew

    def changed_since(self, revision: int) -> frozenset[str] | None:
        """Return the ids that changed after a revision, or None when that is too long ago, or was never here."""
        ids: set[str] = set()
        if revision == self.snapshot.revision:
            return frozenset()
        for before, _, changed in reversed(self.history):
            ids.update(changed)
            if before == revision:
                return frozenset(ids)
            if before < revision:
                break
        return None
