"""Experiments in Postgres. Each change and what the chain is to say of it are one statement: both happen, or neither."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import orjson

from app.db.sql import query
from app.shadow.definition import Definition, State

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    import asyncpg

    from app.db.statements import Statements
    from app.shadow.journal import Journal

JOURNAL_PAGE: Final = 50  # rows; at 20,000 events a second a row has 320 KB
EXPERIMENTS_MAX: Final = 10_000  # every replica holds all of them, about 5 KiB each

_definition = msgspec.json.Decoder(Definition)
_state = msgspec.json.Decoder(State)


class Row(NamedTuple):
    """One experiment as Postgres has it, with the counters that were saved last."""

    name: str
    definition: Definition
    state: State
    revision: int
    created_at: datetime
    created_by: str
    changed_at: datetime
    seq: int
    totals: dict[str, int]
    latency: dict[str, int]


class Entry(NamedTuple):
    """What the chain is to say of a change. Details hold no fractions: numbers with a point are texts."""

    kind: str
    details: dict[str, Any]


class ExperimentStore:
    """Reads and changes experiments. Raises what asyncpg raises, and TimeoutError."""

    def __init__(self, statements: Statements) -> None:
        """`statements` reach Postgres as the server's role, over connections of shadow's own."""
        self._statements = statements

    async def create(self, definition: Definition, state: State, maker: str, details: dict[str, Any]) -> Row | None:
        """Make an experiment; None when the name is taken, or there are EXPERIMENTS_MAX."""
        rows = await self._statements.rows(
            query("create_experiment"), definition.name, msgspec.json.encode(definition).decode(),
            msgspec.json.encode(state).decode(), maker, EXPERIMENTS_MAX, plain_text(details),
        )  # fmt: skip
        return row_of(rows[0]) if rows else None

    async def change(self, name: str, revision: int, state: State, entries: Sequence[Entry]) -> tuple[int, datetime] | None:
        """Change where an experiment stands, if it still has this revision; return the new one and the time, or None."""
        told = "[" + ",".join(f'{{"kind":"{entry.kind}","details":{plain_text(entry.details)}}}' for entry in entries) + "]"
        rows = await self._statements.rows(
            query("change_experiment"), name, revision, msgspec.json.encode(state).decode(), told
        )
        return (rows[0]["revision"], rows[0]["changed_at"]) if rows else None

    async def note(self, entry: Entry) -> None:
        """Have the chain say something that changed nothing, such as a refusal."""
        await self._statements.rows(
            "INSERT INTO pending_entries (kind, details) VALUES ($1, $2::text::json)", entry.kind, plain_text(entry.details)
        )

    async def find(self, name: str) -> Row | None:
        """Return one experiment."""
        rows = await self._statements.rows(query("load_experiments"), 0, name)
        return row_of(rows[0]) if rows else None

    async def beyond(self, revision: int) -> list[Row]:
        """Return the experiments that were made or changed since a revision."""
        return [row_of(row) for row in await self._statements.rows(query("load_experiments"), revision, None)]

    async def save(
        self, name: str, seq: int, totals: Mapping[str, int], latency: Mapping[str, int], journal: Journal,
        weights: Mapping[int, str],
    ) -> bool:  # fmt: skip
        """Keep counters and journal, unless a newer seq is kept already; return whether they were kept."""
        parts = [(kind, packed) for kind, packed in journal.parts() if packed]
        rows = await self._statements.rows(
            query("save_experiment"), name, seq, orjson.dumps(totals).decode(), orjson.dumps(latency).decode(),
            [kind for kind, _ in parts], [packed for _, packed in parts], list(weights), list(weights.values()),
        )  # fmt: skip
        return bool(rows)

    async def journal(self, names: Sequence[str], after: int) -> list[asyncpg.Record]:
        """Return a page of id, name, kind and packed items of what experiments remember one by one."""
        return await self._statements.rows(query("load_journal"), list(names), after, JOURNAL_PAGE)

    async def weights(self, names: Sequence[str]) -> list[asyncpg.Record]:
        """Return name, version and weights (JSON) of experiments, by version."""
        return await self._statements.rows(
            "SELECT name, version, weights FROM experiment_weights WHERE name = ANY ($1) ORDER BY name, version", list(names)
        )

    async def forget_events(self) -> None:
        """Delete what is remembered of events for longer than Redis does."""
        await self._statements.rows(
            "DELETE FROM experiment_journal WHERE kind = 'event' AND at < now() - interval '49 hours'"
        )


def row_of(row: asyncpg.Record) -> Row:
    """Return a row of load_experiments."""
    return Row(
        row["name"], _definition.decode(row["definition"]), _state.decode(row["state"]), row["revision"],
        row["created_at"], row["created_by"], row["changed_at"], row["seq"], orjson.loads(row["totals"]),
        orjson.loads(row["latency"]),
    )  # fmt: skip


def plain(value: Any) -> Any:
    """Return a value as an entry of the chain takes it: no fractions, only text keys."""
    match value:
        case bool() | int() | str() | None:
            return value
        case float():
            return repr(value)
        case dict():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case msgspec.Struct():
            return plain(msgspec.structs.asdict(value))
    raise TypeError(f"{type(value).__name__} cannot stand in an entry")


def plain_text(details: dict[str, Any]) -> str:
    """Return details as JSON text for an entry."""
    return orjson.dumps(plain(details)).decode()
