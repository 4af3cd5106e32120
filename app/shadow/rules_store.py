"""Rules in Postgres. Each change and what the chain is to say of it are one statement: both happen, or neither."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import orjson

from app.db.sql import query
from app.shadow.expression import Expression
from app.shadow.rules_definition import RULES_MAX, Rule, Settings, Version

if TYPE_CHECKING:
    import asyncpg

    from app.db.statements import Statements

SAMPLES_OF_KIND: Final = 20  # newest of each kind of difference; more would not be read

_settings = msgspec.json.Decoder(Settings)


class _VersionRow(msgspec.Struct):
    name: str
    expression: str
    created_at: datetime
    created_by: str
    championed_at: datetime | None


_versions = msgspec.json.Decoder(list[_VersionRow])


class Entry(NamedTuple):
    """What the chain is to say of a change. Details hold no fractions."""

    kind: str
    details: dict[str, Any]

    @property
    def text(self) -> str:
        """The details as JSON."""
        return orjson.dumps(self.details).decode()


class Sample(NamedTuple):
    """One masked sample of a difference, ready to be kept."""

    rule_id: int
    trial: int
    kind: str
    sample_id: str
    text: str


class Loaded(NamedTuple):
    """A row of the table: a rule as it stands, or None for one that was taken away.

    untested  promotions of it for which failed checks were passed over; they count as long as the database exists
    """

    name: str
    rule_id: int
    revision: int
    rule: Rule | None
    untested: int


class RuleStore:
    """Reads and changes rules. Raises what asyncpg raises, and TimeoutError."""

    def __init__(self, statements: Statements) -> None:
        """`statements` reach Postgres as the server's role."""
        self._statements = statements

    async def create(
        self, name: str, description: str | None, champion: str, challenger: str | None, settings: Settings,
        expressions: dict[str, str], maker: str, entry: Entry,
    ) -> bool:  # fmt: skip
        """Make a rule; False when the name is taken, or there are RULES_MAX."""
        rows = await self._statements.rows(
            query("create_rule"), name, description, champion, challenger, msgspec.json.encode(settings).decode(),
            list(expressions), list(expressions.values()), maker, RULES_MAX, entry.text,
        )  # fmt: skip
        return bool(rows)

    async def change(
        self, rule: Rule, *, champion: str, challenger: str | None, description: str | None, settings: Settings, trial: int,
        added: dict[str, str], actor: str, entry: Entry, gone: bool = False,
    ) -> bool:  # fmt: skip
        """Change a rule that still has its revision; False when another change was faster."""
        rows = await self._statements.rows(
            query("change_rule"), rule.rule_id, rule.revision, description, champion, challenger,
            msgspec.json.encode(settings).decode(), trial, list(added), list(added.values()), actor, gone, entry.kind,
            entry.text,
        )  # fmt: skip
        return bool(rows)

    async def note(self, entry: Entry) -> None:
        """Have the chain say something that changed nothing, such as a refusal."""
        await self._statements.rows(
            "INSERT INTO pending_entries (kind, details) VALUES ($1, $2::text::json)", entry.kind, entry.text
        )

    async def load(self, beyond: int, name: str | None = None) -> list[Loaded]:
        """Return what changed beyond a revision, in order; or only the rule of a name."""
        return [_loaded(row) for row in await self._statements.rows(query("load_rules"), beyond, name)]

    async def save_tallies(self, process: str, tallies: dict[tuple[int, int], str]) -> None:
        """Keep the counts of this process: (rule id, trial) to JSON."""
        await self._statements.rows(
            query("save_tallies"), [one[0] for one in tallies], [one[1] for one in tallies], process, list(tallies.values())
        )

    async def tallies(self, rule_id: int, trial: int) -> dict[str, str]:
        """Return the counts of a trial as they were kept last: process to JSON."""
        rows = await self._statements.rows(
            "SELECT process, tally FROM rule_tallies WHERE rule_id = $1 AND trial = $2", rule_id, trial
        )
        return {row["process"]: row["tally"] for row in rows}

    async def crossing(self, rule_id: int, trial: int) -> datetime | None:
        """Return when the evidence of a trial first crossed its threshold, None before."""
        rows = await self._statements.rows("SELECT at FROM rule_crossings WHERE rule_id = $1 AND trial = $2", rule_id, trial)
        return rows[0]["at"] if rows else None

    async def keep_crossing(self, rule_id: int, trial: int, inputs: dict[str, Any], details: dict[str, Any]) -> None:
        """Keep the first crossing of a trial; a later one changes nothing."""
        texts = (orjson.dumps(one).decode() for one in (inputs, details))
        await self._statements.rows(query("keep_rule_crossing"), rule_id, trial, *texts)

    async def save_samples(self, samples: Sequence[Sample]) -> None:
        """Keep samples; the oldest of each kind make room."""
        columns = zip(*samples, strict=True)
        await self._statements.rows(query("save_samples"), *(list(column) for column in columns), SAMPLES_OF_KIND)

    async def samples(self, rule_id: int, trial: int) -> list[Sample]:
        """Return the newest samples of a trial."""
        rows = await self._statements.rows(query("load_samples"), rule_id, trial, SAMPLES_OF_KIND)
        return [Sample(rule_id, trial, row["kind"], row["sample_id"], row["sample"]) for row in rows]


def _loaded(row: asyncpg.Record) -> Loaded:
    settings = _settings.decode(row["settings"])
    if row["deleted_at"] is not None:
        return Loaded(row["name"], row["rule_id"], row["revision"], None, settings.untested)
    versions = tuple(
        Version(one.name, Expression(one.expression), one.created_at, one.created_by, one.championed_at)
        for one in _versions.decode(row["versions"])
    )
    by_name = {one.name: one for one in versions}
    rule = Rule(
        row["rule_id"], row["name"], row["description"], by_name[row["champion"]], by_name.get(row["challenger"]), versions,
        settings, row["trial"], row["revision"], row["created_at"], row["created_by"], row["changed_at"],
        frozenset(one.lower() for one in settings.masked_fields),
    )  # fmt: skip
    return Loaded(rule.name, rule.rule_id, rule.revision, rule, settings.untested)
