"""The rules of this process: compiled, in memory, and at most REFRESH_S older than what Postgres has."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from app.db.retry import TRANSIENT, delay_ms
from app.turns import end_task

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.shadow.rules_definition import Rule
    from app.shadow.rules_store import Loaded, RuleStore

log = logging.getLogger(__name__)

REFRESH_S: Final = 0.5  # how often a replica looks for changes of others; one look is one row of an index


class RuleBook:
    """Finds rules without I/O, and follows their changes. Every replica has one."""

    def __init__(self, store: RuleStore) -> None:
        """Begin empty; `start` reads all rules."""
        self._store = store
        self._rules: dict[str, Rule] = {}
        self._untested: dict[int, int] = {}
        self._revision = 0
        self._task: asyncio.Task[None] | None = None
        self.loaded = False

    def start(self, on_crash: Callable[[BaseException], None]) -> None:
        """Begin to follow; an error that it does not know is a crash."""
        self._task = asyncio.create_task(self._run(on_crash), name="rules")

    async def stop(self) -> None:
        """Follow no more."""
        if self._task is not None:
            await end_task(self._task)

    def get(self, name: str) -> Rule | None:
        """Return a rule that this process knows."""
        return self._rules.get(name)

    async def find(self, name: str) -> Rule | None:
        """Return a rule, from Postgres when this process does not know it: another may have made it just now."""
        known = self._rules.get(name)
        return known if known is not None else await self.fresh(name)

    async def fresh(self, name: str) -> Rule | None:
        """Return a rule as Postgres has it now."""
        for loaded in await self._store.load(0, name):
            if loaded.rule is not None:
                self._keep(loaded)
                return loaded.rule
        return None

    def names(self) -> list[str]:
        """Return the names of all rules, in order."""
        return sorted(self._rules)

    def rules(self) -> list[Rule]:
        """Return all rules, in no order."""
        return list(self._rules.values())

    @property
    def untested(self) -> int | None:
        """Promotions over failed checks, of rules that were taken away too; None before rules are read."""
        return sum(self._untested.values()) if self.loaded else None

    def is_current(self, rule_id: int, trial: int) -> bool:
        """Whether a trial goes on, as far as this process knows."""
        return any(rule.rule_id == rule_id and rule.trial == trial for rule in self._rules.values())

    async def refresh(self) -> None:
        """Read what has changed."""
        for loaded in await self._store.load(self._revision):
            self._keep(loaded)
            self._revision = max(self._revision, loaded.revision)
        self.loaded = True

    def _keep(self, loaded: Loaded) -> None:
        known = self._rules.get(loaded.name)
        if loaded.untested > self._untested.get(loaded.rule_id, 0):
            self._untested[loaded.rule_id] = loaded.untested
        if loaded.rule is None:
            if known is not None and known.rule_id == loaded.rule_id:
                del self._rules[loaded.name]
        elif known is None or known.revision < loaded.revision:
            self._rules[loaded.name] = loaded.rule

    async def _run(self, on_crash: Callable[[BaseException], None]) -> None:
        failures = 0
        while True:
            try:
                await self.refresh()
                failures = 0
                await asyncio.sleep(REFRESH_S)
            except (*TRANSIENT, asyncpg.PostgresError) as error:
                log.warning("rules are not refreshed", extra={"reason": f"{type(error).__name__}: {error}"})
                await asyncio.sleep(max(REFRESH_S, delay_ms(failures) / 1000))
                failures += 1
            except Exception as error:  # noqa: BLE001 - an unknown fault stops the process, which starts clean
                on_crash(error)
                return


def described(rule: Rule) -> dict[str, Any]:
    """Return what entries of the chain say of a rule: texts and integers, no fractions."""
    return {
        "rule": rule.name,
        "champion": rule.champion.name,
        "challenger": None if rule.challenger is None else rule.challenger.name,
        "trial": rule.trial,
    }
