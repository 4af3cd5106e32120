"""Lays what Postgres holds of experiments over a Redis that forgot them, page by page, whatever their size."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.shadow.counters import Counters
    from app.shadow.store import ExperimentStore, Row


async def lay(store: ExperimentStore, counters: Counters, rows: Sequence[Row]) -> None:
    """Lay the journals, then the counters, of experiments; several replicas may do so at once.

    Raises Forgot when Redis is emptied meanwhile: half of a journal must not be opened.
    """
    left = {row.name: row for row in rows}
    tokens: dict[str, str] = {}
    for row in rows:
        token = await counters.begin(row.name, row.seq)
        if token is None:
            del left[row.name]
        else:
            tokens[row.name] = token
    after = 0
    while left and (page := await store.journal(list(left), after)):
        for after, name, kind, packed in page:  # noqa: B007 - the last id is where the next page begins
            if name in left and not await counters.lay(name, left[name].seq, tokens[name], kind, packed):
                del left[name]
    weights: dict[str, dict[int, str]] = {}
    for name, version, text in await store.weights(list(left)):
        weights.setdefault(name, {})[version] = text
    for name, row in left.items():
        await counters.open(name, row.seq, tokens[name], row.totals, row.latency, weights.get(name, {}))
