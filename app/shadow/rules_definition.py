"""What a rule is: named versions, a champion, a challenger, and how the two are compared. Plain values, no I/O."""

from __future__ import annotations

from datetime import datetime
from typing import Final, NamedTuple

import msgspec

from app.shadow.expression import Expression

VERSIONS_MAX: Final = 100  # of one rule; then it is another rule
RULES_MAX: Final = 1_000  # each replica holds all of them compiled, below 20 KiB each as a rule
MIN_SAMPLES: Final = 100  # comparisons before a challenger can become the champion


class Settings(msgspec.Struct, frozen=True):
    """How champion and challenger are compared, and what outlives every trial.

    shadow_rate     share of evaluations that are compared, above 0 to 1
    ignored_fields  RFC 6901 pointers into the answer that do not count; `*` for every element of a list
    masked_fields   names of fields that samples do not show, besides those that look private
    min_samples     comparisons before the challenger can be promoted
    untested        promotions for which failed checks were passed over, as long as there are rules
    """

    shadow_rate: float = 1.0
    ignored_fields: tuple[str, ...] = ()
    masked_fields: tuple[str, ...] = ()
    min_samples: int = MIN_SAMPLES
    untested: int = 0


class Version(NamedTuple):
    """One version of a rule. `championed_at` is when it first became the champion, None if it never was."""

    name: str
    expression: Expression
    created_at: datetime
    created_by: str
    championed_at: datetime | None


class Rule(NamedTuple):
    """A rule as it stands. `revision` rises with every change; `trial` when other things are compared than before."""

    rule_id: int
    name: str
    description: str | None
    champion: Version
    challenger: Version | None
    versions: tuple[Version, ...]
    settings: Settings
    trial: int
    revision: int
    created_at: datetime
    created_by: str
    changed_at: datetime
    masked: frozenset[str]

    def version(self, name: str) -> Version | None:
        """Return a version, None for a name that is none."""
        return next((one for one in self.versions if one.name == name), None)
