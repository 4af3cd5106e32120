"""The calls of /v1/rules: from a decoded body to an answer. HTTP is around them, Postgres and Redis below."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec

from app.shadow.expression import Expression
from app.shadow.expression_text import ExpressionRefused
from app.shadow.rules_book import described
from app.shadow.rules_definition import VERSIONS_MAX, Settings
from app.shadow.rules_difference import TIMEOUT
from app.shadow.rules_report import decision_inputs, failed_checks, report_of
from app.shadow.rules_store import Entry
from app.shadow.rules_wire import Answered, Promoted, rule_view
from app.web.problems import FieldError, Problem, invalid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.shadow.rules_book import RuleBook
    from app.shadow.rules_definition import Rule
    from app.shadow.rules_exchange import Exchange
    from app.shadow.rules_store import RuleStore
    from app.shadow.rules_trial import Trials
    from app.shadow.rules_wire import NewRule, NewVersion, Promotion, Report, RuleChange, RuleView
    from app.web.fields import Document

_KEPT: Final = ("shadow_rate", "ignored_fields", "masked_fields", "min_samples")


class RuleCalls:
    """What the calls need, and the calls. `actor` is the id of the key that calls."""

    def __init__(self, store: RuleStore, book: RuleBook, trials: Trials, exchange: Exchange) -> None:
        """See `app.shadow.rules_opening`."""
        self._store = store
        self._book = book
        self._trials = trials
        self._exchange = exchange

    async def create(self, body: NewRule, actor: str) -> RuleView:
        """POST /v1/rules. 201.

        refuses  409 `rule_exists`, `too_many_rules`; 422 at an expression that is none, or a name that is no version
        """
        expressions = _expressions(body.versions)
        for field, name in (("/champion", body.champion), ("/challenger", body.challenger)):
            if name is not None and name not in expressions:
                raise invalid(field, "Expected the name of one of the versions")
        if body.challenger == body.champion:
            raise invalid("/challenger", "Expected another version than the champion")
        settings = Settings(body.shadow_rate, tuple(body.ignored_fields), tuple(body.masked_fields), body.min_samples)
        details = {
            "actor": actor, "rule": body.name, "champion": body.champion, "challenger": body.challenger,
            "versions": _digests(expressions), "settings": _told(settings),
        }  # fmt: skip
        made = await self._store.create(
            body.name, body.description, body.champion, body.challenger, settings, expressions, actor,
            Entry("rule.create", details),
        )  # fmt: skip
        if not made:
            if await self._book.fresh(body.name) is not None:
                raise Problem(409, "rule_exists", "There is a rule of this name already.")
            raise Problem(409, "too_many_rules", "There are as many rules as there can be; delete one first.")
        return rule_view(await self._fresh(body.name))

    async def page(self, after: str, limit: int) -> tuple[list[RuleView], str | None]:
        """GET /v1/rules: rules by name from the first beyond `after`; and the next `after`."""
        await self._book.refresh()
        names = [name for name in self._book.names() if name > after]
        shown = [rule_view(rule) for name in names[:limit] if (rule := self._book.get(name)) is not None]
        return shown, names[limit - 1] if len(names) > limit else None

    async def read(self, name: str) -> RuleView:
        """GET /v1/rules/{name}. refuses  404 `no_rule`."""
        return rule_view(await self._fresh(name))

    async def change(self, name: str, body: RuleChange, revision: int | None, actor: str) -> RuleView:
        """PATCH /v1/rules/{name}: 200. Another challenger or other ignored fields begin a new trial, from 0.

        refuses  404 `no_rule`; 409 `version_conflict`, `too_many_versions`; 422 at what is wrong
        """
        rule = await self._of_revision(name, revision)
        added = {} if body.versions is msgspec.UNSET else _expressions(body.versions)
        for index, version in enumerate(added):
            if rule.version(version) is not None:
                raise invalid(f"/versions/{index}/name", "Expected a name that no version has: versions never change")
        if len(rule.versions) + len(added) > VERSIONS_MAX:
            raise Problem(409, "too_many_versions", f"A rule has at most {VERSIONS_MAX} versions; make another rule.")
        challenger = _name_of(rule.challenger) if body.challenger is msgspec.UNSET else body.challenger
        if challenger is not None and challenger not in added and rule.version(challenger) is None:
            raise invalid("/challenger", "Expected the name of one of the versions")
        if challenger == rule.champion.name:
            raise invalid("/challenger", "Expected another version than the champion")
        settings = _changed(rule.settings, body)
        again = challenger != _name_of(rule.challenger) or settings.ignored_fields != rule.settings.ignored_fields
        trial = rule.trial + again
        details = described(rule) | {
            "actor": actor, "challenger": challenger, "trial": trial, "versions": _digests(added),
            "settings": _told(settings),
        }  # fmt: skip
        description = rule.description if body.description is msgspec.UNSET else body.description
        await self._store_change(
            rule, Entry("rule.change", details), actor, challenger=challenger, description=description,
            settings=settings, trial=trial, added=added,
        )  # fmt: skip
        return rule_view(await self._fresh(name))

    async def promote(self, name: str, body: Promotion, revision: int | None, actor: str, *, is_admin: bool) -> Promoted:
        """POST /v1/rules/{name}/promote: make the challenger, or an earlier champion, the champion. 200.

        refuses  403 `forbidden` for an override without role admin; 404 `no_rule`; 409 `no_challenger`, `version_conflict`,
                 `unsafe_deployment` with every failed check; 422 at what is wrong
        """
        rule = await self._of_revision(name, revision)
        if body.override and not is_admin:
            raise Problem(403, "forbidden", "Only an admin passes over failed checks.")
        if body.override and body.reason is None:
            raise invalid("/reason", "Expected a reason for passing over failed checks")
        version = rule.challenger if body.version is None else rule.version(body.version)
        if version is None and body.version is None:
            raise Problem(409, "no_challenger", "The rule has no challenger; name a version, or give it one.")
        if version is None or version.name == rule.champion.name:
            raise invalid("/version", "Expected the name of a version that is not the champion")
        gathered = await self._exchange.gather(rule, rule.trial)
        failed = failed_checks(rule, version, gathered.tally)
        details = described(rule) | {
            "actor": actor, "version": version.name, "failed_checks": failed, "override": body.override,
            "reason": body.reason, "inputs": decision_inputs(gathered.tally, crossed_before=gathered.crossed_at is not None),
        }  # fmt: skip
        if failed and not body.override:
            await self._store.note(Entry("rule.promotion_refused", details))
            raise Problem(
                409, "unsafe_deployment", "The version is not ready to become the champion.", failed_checks=[*failed]
            )
        settings = msgspec.structs.replace(rule.settings, untested=rule.settings.untested + bool(failed))
        await self._store_change(
            rule, Entry("rule.promote", details), actor, champion=version.name, challenger=None, trial=rule.trial + 1,
            settings=settings,
        )  # fmt: skip
        return Promoted(rule_view(await self._fresh(name)), failed)

    async def delete(self, name: str, revision: int | None, actor: str) -> None:
        """DELETE /v1/rules/{name}: 204. Its name is free again. refuses  404 `no_rule`; 409 `version_conflict`."""
        rule = await self._of_revision(name, revision)
        details = described(rule) | {"actor": actor}
        await self._store_change(rule, Entry("rule.delete", details), actor, gone=True)
        await self._book.refresh()

    async def evaluate(self, name: str, data: Document) -> Answered:
        """POST /v1/rules/{name}/evaluate: the champion's answer. Reads Postgres only for a rule that is not known here.

        refuses  404 `no_rule`; 422 `rule_failed`
        """
        rule = self._book.get(name) or await self._book.find(name)
        if rule is None:
            _no_rule()
        judged = self._trials.answer(rule, dict(data), data.size_bytes)
        if judged.failure is not None:
            why = "it takes more steps than one evaluation may" if judged.failure == TIMEOUT else judged.failure
            raise Problem(422, "rule_failed", f"The rule has no answer to this input: {why}.", version=rule.champion.name)
        return Answered(rule.name, rule.champion.name, judged.answer)

    async def report(self, name: str, trial: int | None) -> Report:
        """GET /v1/rules/{name}/report. refuses  404 `no_rule`; 422 for a trial that has not begun."""
        rule = await self._fresh(name)
        if trial is not None and trial > rule.trial:
            raise invalid("?trial", "Expected a trial that has begun")
        number = rule.trial if trial is None else trial
        return report_of(rule, number, await self._exchange.gather(rule, number))

    async def _fresh(self, name: str) -> Rule:
        rule = await self._book.fresh(name)
        if rule is None:
            _no_rule()
        return rule

    async def _of_revision(self, name: str, revision: int | None) -> Rule:
        """Return a rule as Postgres has it, if it is the one that the caller means."""
        rule = await self._fresh(name)
        if revision is not None and revision != rule.revision:
            raise _conflict(rule.revision)
        return rule

    async def _store_change(self, rule: Rule, entry: Entry, actor: str, **changes: Any) -> None:
        kept: dict[str, Any] = {
            "champion": rule.champion.name, "challenger": _name_of(rule.challenger), "description": rule.description,
            "settings": rule.settings, "trial": rule.trial, "added": {},
        }  # fmt: skip
        if not await self._store.change(rule, actor=actor, entry=entry, **(kept | changes)):
            raise _conflict(None)


def _name_of(version: Any) -> str | None:
    return None if version is None else str(version.name)


def _no_rule() -> NoReturn:
    raise Problem(404, "no_rule", "There is no rule of this name.")


def _conflict(revision: int | None) -> Problem:
    problem = Problem(409, "version_conflict", "The rule has changed since; read it again and decide anew.")
    if revision is not None:
        problem.extra["version"] = revision
    return problem


def _expressions(versions: Sequence[NewVersion]) -> dict[str, str]:
    """Return name to expression of versions. refuses  422 at each that is wrong."""
    found: dict[str, str] = {}
    errors: list[FieldError] = []
    for index, version in enumerate(versions):
        if version.name in found:
            errors.append(FieldError(f"/versions/{index}/name", "Expected each name once"))
        try:
            Expression(version.expression)
        except ExpressionRefused as error:
            errors.append(FieldError(f"/versions/{index}/expression", error.detail))
        found[version.name] = version.expression
    if errors:
        raise Problem(422, "invalid_request", "The body has invalid fields.", errors=errors)
    return found


def _changed(settings: Settings, body: RuleChange) -> Settings:
    values = {name: getattr(body, name) for name in _KEPT}
    given = {name: value for name, value in values.items() if value is not msgspec.UNSET}
    return msgspec.structs.replace(
        settings, **{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    )


def _digests(expressions: dict[str, str]) -> dict[str, str]:
    """Return the SHA-256 of each expression: the chain proves which text a version has, and the text stays in its row."""
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in expressions.items()}


def _told(settings: Settings) -> dict[str, Any]:
    return {
        "shadow_rate": repr(settings.shadow_rate), "ignored_fields": list(settings.ignored_fields),
        "masked_fields": list(settings.masked_fields), "min_samples": settings.min_samples,
    }  # fmt: skip
