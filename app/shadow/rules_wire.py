"""Bodies and answers of /v1/rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from app.clock import ms_of, time_text
from app.shadow.expression_text import TEXT_MAX
from app.shadow.rules_definition import MIN_SAMPLES
from app.shadow.wire import Reason
from app.web.fields import Description, Document, Input, Name

if TYPE_CHECKING:
    from datetime import datetime

    from app.shadow.rules_definition import Rule, Version

AT_ONCE_MAX: Final = 10  # versions in one body: with the longest expressions that is below the limit of a body
FIELDS_MAX: Final = 50  # ignored or masked fields of one rule

Pointer = Annotated[
    str, Meta(pattern=r"^(/[^\x00-\x1f/]{1,64}){1,16}\Z", description="RFC 6901 pointer; `*` is any element of a list.")
]
FieldName = Annotated[str, Meta(pattern=r"^[^\x00-\x1f]{1,64}\Z")]
Text = Annotated[
    str,
    Meta(min_length=1, max_length=TEXT_MAX, pattern=r"^[^\x00]*\Z", description="An expression of the language of rules."),
]
Rate = Annotated[float, Meta(gt=0, le=1, description="Share of evaluations that are compared.")]
Samples = Annotated[int, Meta(ge=1, le=1_000_000_000, description="Comparisons before the challenger can be promoted.")]
TrialNumber = Annotated[int, Meta(ge=1, le=2_147_483_647, description="A trial; the current one by default.")]


class NewVersion(Input, frozen=True):
    """A version of a rule. Its expression never changes."""

    name: Name
    expression: Text


class NewRule(Input, frozen=True):
    """Body of POST /v1/rules. Without a challenger nothing is compared."""

    name: Name
    versions: Annotated[list[NewVersion], Meta(min_length=1, max_length=AT_ONCE_MAX)]
    champion: Name
    challenger: Name | None = None
    description: Description | None = None
    shadow_rate: Rate = 1.0
    ignored_fields: Annotated[list[Pointer], Meta(max_length=FIELDS_MAX)] = msgspec.field(default_factory=list)
    masked_fields: Annotated[list[FieldName], Meta(max_length=FIELDS_MAX)] = msgspec.field(default_factory=list)
    min_samples: Samples = MIN_SAMPLES


class RuleChange(Input, frozen=True):
    """Body of PATCH /v1/rules/{name}: `versions` are added, a null challenger ends the trial, what is not named stays."""

    versions: Annotated[list[NewVersion], Meta(min_length=1, max_length=AT_ONCE_MAX)] | msgspec.UnsetType = msgspec.UNSET
    challenger: Name | msgspec.UnsetType | None = msgspec.UNSET
    description: Description | msgspec.UnsetType | None = msgspec.UNSET
    shadow_rate: Rate | msgspec.UnsetType = msgspec.UNSET
    ignored_fields: Annotated[list[Pointer], Meta(max_length=FIELDS_MAX)] | msgspec.UnsetType = msgspec.UNSET
    masked_fields: Annotated[list[FieldName], Meta(max_length=FIELDS_MAX)] | msgspec.UnsetType = msgspec.UNSET
    min_samples: Samples | msgspec.UnsetType = msgspec.UNSET


class Promotion(Input, frozen=True):
    """Body of POST /v1/rules/{name}/promote: by default the challenger. `override` needs role admin and a reason."""

    version: Name | None = None
    override: bool = False
    reason: Reason | None = None


class Evaluation(Input, frozen=True):
    """Body of POST /v1/rules/{name}/evaluate."""

    input: Document


class Answered(Struct):
    """The champion's answer."""

    name: str
    version: str
    answer: Any


class VersionView(Struct):
    """A version as it is shown."""

    name: str
    expression: str
    created_at: str
    created_by: str
    championed_at: str | None


class RuleView(Struct, kw_only=True):
    """A rule as it is shown. `version` is its revision, which ETag and If-Match carry."""

    name: str
    description: str | None
    champion: str
    challenger: str | None
    versions: list[VersionView]
    shadow_rate: float
    ignored_fields: list[str]
    masked_fields: list[str]
    min_samples: int
    trial: int
    version: int
    created_at: str
    created_by: str
    changed_at: str


class RulePage(Struct):
    """A page of rules."""

    data: list[RuleView]
    next_cursor: str | None


class RateView(Struct):
    """A rate, and the interval that all looks together miss with a probability of at most 5 %."""

    rate: float
    low: float
    high: float


class FieldView(Struct):
    """A field of the answers: how often the challenger, and how often the champion itself, differed there."""

    pointer: str
    differences: int
    noise: int
    flagged: bool


class TimesView(Struct):
    """Microseconds of evaluations, rounded up to a quarter of a doubling; null without any."""

    p50: float | None
    p95: float | None
    p99: float | None


class SampleView(Struct):
    """A comparison that differed, private fields masked. `noisy`: the champion differed from itself as well."""

    at: str
    kind: str
    fields: list[str]
    noisy: bool
    input: Any
    champion: Any
    challenger: Any


class Statement(Struct):
    """What the trial says, valid at every look: see `app.shadow.rules_verdict`.

    crossed_at  when it was first known that the challenger differs: from then on the verdict is `differs`
    """

    verdict: Literal["collecting", "no_difference_found", "differs"]
    e_value: float
    threshold: float
    difference_rate: RateView | None
    noise_rate: RateView | None
    excess_rate: float | None
    crossed_at: str | None


class Report(Struct, kw_only=True):
    """What was counted of a trial, by all replicas. `fresh`: their counts of the last seconds are in it."""

    name: str
    champion: str | None
    challenger: str | None
    trial: int
    fresh: bool
    evaluated: int
    champion_failed: int
    sampled_out: int
    dropped: int
    compared: int
    differences: dict[str, int]
    challenger_only: int
    noise_only: int
    both: int
    statement: Statement
    fields: list[FieldView]
    champion_us: TimesView
    challenger_us: TimesView
    samples: list[SampleView]


class Promoted(Struct):
    """The rule after a promotion, and the checks that were passed over."""

    rule: RuleView
    failed_checks: list[str]


def rule_view(rule: Rule) -> RuleView:
    """Return a rule as it is shown."""
    settings = rule.settings
    return RuleView(
        name=rule.name, description=rule.description, champion=rule.champion.name,
        challenger=None if rule.challenger is None else rule.challenger.name,
        versions=[_version_view(one) for one in rule.versions], shadow_rate=settings.shadow_rate,
        ignored_fields=list(settings.ignored_fields), masked_fields=list(settings.masked_fields),
        min_samples=settings.min_samples, trial=rule.trial, version=rule.revision, created_at=_text(rule.created_at),
        created_by=rule.created_by, changed_at=_text(rule.changed_at),
    )  # fmt: skip


def _version_view(version: Version) -> VersionView:
    at = version.championed_at
    return VersionView(
        version.name,
        version.expression.text,
        _text(version.created_at),
        version.created_by,
        None if at is None else _text(at),
    )


def _text(at: datetime) -> str:
    return time_text(ms_of(at))
