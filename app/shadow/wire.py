"""Bodies and answers of /v1/experiments."""

from __future__ import annotations

import secrets
from itertools import pairwise
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from app.shadow.assignment import PERCENT, propensities_of, stages_of
from app.shadow.bucketing import BUCKETS
from app.shadow.definition import (
    STEPS_MAX,
    VARIANTS_MAX,
    VARIANTS_MIN,
    Allocation,
    Canary,
    CanaryStep,
    Definition,
    FlagValue,
    Guardrails,
    State,
    Status,
    Variant,
)
from app.shadow.tallies import LATENCY_MAX_MS
from app.shadow.thompson import with_floor
from app.web.fields import Input, Metadata, Name
from app.web.problems import FieldError, Problem, invalid

OUTCOMES_MAX: Final = 10_000  # of one request, as the API contract says
OUTCOMES_BODY_MAX_BYTES: Final = 4 * 1024 * 1024  # OUTCOMES_MAX with ids of 200 characters
WEIGHT_MAX: Final = 1_000_000  # relative to each other; a share below 0.01 % is refused besides
LEAST_SHARE: Final = (1 - 1e-9) / BUCKETS  # of a weight among all: one bucket, but for the rounding of the division
SAMPLES_MAX: Final = 1_000_000_000
LIFT_MAX: Final = 5.0  # 500 %; the evidence tells ratios up to 7.39 apart
VALUE_MAX: Final = 1_000_000_000  # of one outcome; 500 in thousandths are summed exactly in a script
SECONDS_MAX: Final = 90 * 86_400  # a step of a canary that takes a quarter is none
SEED_MAX: Final = 2**53  # what every language holds exactly

_SMALL_SHARE: Final = "Expected weights that give every variant at least 0.01 % of all units"
_Text = r"^[^\x00-\x1f\x7f]*\Z"
UnitId = Annotated[
    str, Meta(min_length=1, max_length=256, pattern=_Text, description="Whom it is about: a user, a session.")
]
EventId = Annotated[
    str, Meta(min_length=1, max_length=200, pattern=_Text, description="Sent again with the same id, it counts once.")
]
# Whoever reads the chain later is to find a reason there, and not a blank.
Reason = Annotated[str, Meta(min_length=1, max_length=500, pattern=r"^[^\x00]*[^\x00\s][^\x00]*\Z")]
Samples = Annotated[int, Meta(ge=1, le=SAMPLES_MAX)]
Coverage = Annotated[float, Meta(gt=0, le=1, description="Share of all units that take part.")]
Percent = Annotated[float, Meta(ge=0.01, le=100)]
Draws = Annotated[int, Meta(ge=1, le=100_000, description="Draws of the Monte Carlo simulation.")]
DrawSeed = Annotated[int, Meta(ge=0, le=2**31 - 1, description="Seed of the simulation.")]


FlagText = Annotated[str, Meta(max_length=1000, pattern=r"^[^\x00]*\Z")]
FlagWhole = Annotated[int, Meta(ge=-SEED_MAX, le=SEED_MAX)]
FlagNumber = Annotated[float, Meta(ge=-1e300, le=1e300)]


class NewVariant(Input, frozen=True):
    """One arm; weights are relative to each other. `value` is what clients of feature flags get; by default the name."""

    name: Name
    control: bool = False
    weight: Annotated[float, Meta(gt=0, le=WEIGHT_MAX)] = 1.0
    value: FlagText | bool | FlagWhole | FlagNumber | None = None


class NewGuardrails(Input, frozen=True):
    """What makes the experiment roll back by itself. At least one limit is needed."""

    error_rate: Annotated[float, Meta(gt=0, le=1)] | None = None
    latency_ms_p95: Annotated[float, Meta(gt=0, le=LATENCY_MAX_MS)] | None = None
    min_samples: Samples = 100


class NewCanary(Input, frozen=True):
    """Percent of all units that get a challenger at each step, rising."""

    steps: Annotated[list[Percent], Meta(min_length=1, max_length=STEPS_MAX)] | None = None
    min_seconds: Annotated[int, Meta(ge=0, le=SECONDS_MAX)] = 60
    min_samples: Samples = 100
    requires_approval: bool = False


class NewExperiment(Input, frozen=True):
    """Body of POST /v1/experiments. Exactly one variant is the control."""

    name: Name
    variants: Annotated[list[NewVariant], Meta(min_length=VARIANTS_MIN, max_length=VARIANTS_MAX)]
    allocation: Allocation
    min_samples: Samples = 100
    min_lift: Annotated[float, Meta(ge=0, le=LIFT_MAX)] = 0.05
    confidence: Annotated[float, Meta(ge=0.5, lt=1)] = 0.95
    max_false_positive: Annotated[float, Meta(ge=0.0001, le=0.5)] = 0.02
    guardrails: NewGuardrails | None = None
    canary: NewCanary | None = None
    seed: (
        Annotated[str, Meta(min_length=1, max_length=64, pattern=_Text)] | Annotated[int, Meta(ge=0, le=SEED_MAX)] | None
    ) = None
    coverage: Coverage = 1.0
    event: Name | None = None


class ExperimentChange(Input, frozen=True):
    """Body of PATCH /v1/experiments/{name}: pause, resume, or another coverage."""

    status: Literal["running", "paused"] | None = None
    coverage: Coverage | None = None


class AssignCall(Input, frozen=True):
    """Body of POST /v1/experiments/{name}/assign."""

    unit_id: UnitId
    attributes: Metadata | None = None  # what is known of the unit: taken for callers that send it, no split depends on it


class Outcome(Input, frozen=True):
    """What became of a unit. Give `unit_id`, `variant`, or both.

    All outcomes of a unit are counted; its first success, first error and first slow call are evidence. An outcome without
    `unit_id` is taken as one of a unit of its own.
    """

    event_id: EventId
    success: bool
    variant: Name | None = None
    unit_id: UnitId | None = None
    latency_ms: Annotated[float, Meta(ge=0, le=LATENCY_MAX_MS)] | None = None
    error: bool = False
    value: Annotated[float, Meta(ge=-VALUE_MAX, le=VALUE_MAX)] | None = None


class Outcomes(Input, frozen=True):
    """Body of POST /v1/experiments/{name}/outcomes: one outcome, or a list of them in `outcomes`."""

    outcomes: Annotated[list[Outcome], Meta(min_length=1, max_length=OUTCOMES_MAX)] | None = None
    event_id: EventId | None = None
    success: bool | None = None
    variant: Name | None = None
    unit_id: UnitId | None = None
    latency_ms: Annotated[float, Meta(ge=0, le=LATENCY_MAX_MS)] | None = None
    error: bool | None = None
    value: Annotated[float, Meta(ge=-VALUE_MAX, le=VALUE_MAX)] | None = None


class Deploy(Input, frozen=True):
    """Body of POST /v1/experiments/{name}/deploy. An override needs the role admin and a reason."""

    variant: Name
    override: bool = False
    reason: Reason | None = None


class RollbackCall(Input, frozen=True):
    """Body of POST /v1/experiments/{name}/rollback."""

    reason: Reason


class CanaryCall(Input, frozen=True):
    """Body of POST /v1/experiments/{name}/canary.

    advance: begin the next step without waiting for time or approval; outcomes are still needed.
    approve: let the next step begin once the rest of its conditions holds.
    """

    action: Literal["pause", "resume", "advance", "approve"]


class Assigned(Struct):
    """What a unit gets. `in_test` says whether its outcomes are counted; `propensity` how likely it had to get it."""

    variant: str
    reason: str
    in_test: bool
    propensity: float | None


class Taken(Struct):
    """What became of outcomes: accepted ones are counted, or kept apart as late or quarantined; repetitions are not.

    without_evidence  accepted and counted, but no evidence, as nobody can say how likely the unit was to have its variant:
                      without a unit under Thompson sampling; without one while outcomes of a canary's step with other
                      shares may be on their way; of a unit that a canary has moved from one variant to another
    """

    accepted: int
    duplicates: int
    late: int
    quarantined: int
    without_evidence: int


class VariantView(Struct):
    """One arm."""

    name: str
    control: bool
    weight: float
    value: FlagValue | None


class Decision(Struct):
    """How the test stands or ended; a verdict does not change."""

    decision: str
    variant: str | None
    reasons: list[str]
    at: str | None


class CanaryView(Struct):
    """Where a canary stands. `status`: running, paused, completed, deployed, rolled_back.

    percent  of all units that get a challenger: of the step, or of what was deployed or rolled back
    """

    steps: list[float]
    min_seconds: int
    min_samples: int
    requires_approval: bool
    step: int
    percent: float
    status: str
    started_at: str
    approved: bool
    waiting_for: list[str]


class DeploymentView(Struct):
    """Which variant all units get; with the checks that an override passed over."""

    variant: str
    at: str
    by: str
    failed_checks: list[str]
    override_reason: str | None


class RollbackView(Struct):
    """Why all units went back to the control; `verified_at` once that was seen to be in effect."""

    at: str
    by: str
    reason: str
    verified_at: str | None


class ExperimentView(Struct, kw_only=True):
    """An experiment as it stands."""

    name: str
    status: Status
    variants: list[VariantView]
    allocation: str
    seed: str
    coverage: float
    min_samples: int
    min_lift: float
    confidence: float
    max_false_positive: float
    guardrails: Guardrails | None
    canary: CanaryView | None
    event: str
    decision: Decision
    deployment: DeploymentView | None
    rollback: RollbackView | None
    created_at: str
    created_by: str
    changed_at: str
    version: int


class ExperimentPage(Struct):
    """A page of experiments, by name."""

    data: list[ExperimentView]
    next_cursor: str | None


def definition_of(body: NewExperiment) -> Definition:
    """Return the definition that a body asks for. Raises Problem 422 with every wrong place that types do not tell."""
    errors: list[FieldError] = []
    names: set[str] = set()
    for index, variant in enumerate(body.variants):
        if variant.name in names:
            errors.append(FieldError(f"/variants/{index}/name", "Expected a name that no other variant has"))
        names.add(variant.name)
    controls = sum(variant.control for variant in body.variants)
    if controls != 1:
        errors.append(FieldError("/variants", "Expected exactly one variant with control: true"))
    if body.guardrails is not None and body.guardrails.error_rate is body.guardrails.latency_ms_p95 is None:
        errors.append(FieldError("/guardrails", "Expected error_rate, latency_ms_p95 or both"))
    if body.allocation == "thompson" and body.coverage != 1.0:
        errors.append(FieldError("/coverage", "Expected none: Thompson sampling takes every unit"))
    errors += _canary_errors(body) + _value_errors(body)
    if errors:
        raise Problem(422, "invalid_request", "The body has invalid fields.", errors=errors)
    definition = Definition(
        name=body.name,
        variants=tuple(Variant(one.name, one.control, one.weight, one.value) for one in body.variants),
        allocation=body.allocation,
        seed=secrets.token_hex(8) if body.seed is None else str(body.seed),
        min_samples=body.min_samples,
        min_lift=body.min_lift,
        confidence=body.confidence,
        max_false_positive=body.max_false_positive,
        guardrails=None if body.guardrails is None else Guardrails(*_values(body.guardrails)),
        canary=None if body.canary is None else _canary(body.canary),
        event=body.event,
    )
    if definition.allocation == "thompson" and min(definition.weights) < definition.floor:
        definition = msgspec.structs.replace(definition, begins_with=with_floor(definition.weights, definition.floor))
    check_shares(definition, first_state(definition, body.coverage, 0, 0), "/variants")
    return definition


def first_state(definition: Definition, coverage: float, at_ms: int, common_ms: int) -> State:
    """Return where an experiment stands when it begins: in Unix ms, and by the replicas' common clock."""
    step = None if definition.canary is None else CanaryStep(0, at_ms, (0,) * len(definition.variants))
    return State(coverages=(coverage,), stage_ms=common_ms, step=step)


def check_shares(definition: Definition, state: State, pointer: str) -> None:
    """Raise Problem 422 if some variant would get less than 0.01 % of all units: it could never be told apart."""
    # A variant gets the bucket in which its range begins, however little is asked for: that would be more than was asked.
    coverage, least = state.coverages[-1], min(definition.weights)
    if definition.canary is not None:
        coverage = definition.canary.steps[0] / PERCENT
        least = min(definition.weights[index] for index in definition.challengers) / (
            1 - definition.weights[definition.control]
        )
    if min(*definition.weights, coverage * least) < LEAST_SHARE:
        raise invalid(pointer, _SMALL_SHARE)
    for stage, ranges in enumerate(stages_of(definition, state)):
        shares = propensities_of(ranges)
        last = definition.canary is not None and definition.canary.steps[stage] == 100
        if any(share <= 0 for index, share in enumerate(shares) if not (last and index == definition.control)):
            raise invalid(pointer, _SMALL_SHARE)


def _canary_errors(body: NewExperiment) -> list[FieldError]:
    canary = body.canary
    if canary is None:
        return []
    errors = []
    if body.allocation != "fixed":
        errors.append(FieldError("/canary", "Expected allocation fixed: the steps of a canary decide on the shares"))
    if body.coverage != 1.0:
        errors.append(FieldError("/coverage", "Expected none beside a canary: its steps decide on the coverage"))
    steps = canary.steps or []
    if any(after <= before for before, after in pairwise(steps)):
        errors.append(FieldError("/canary/steps", "Expected percentages that rise"))
    return errors


def _value_errors(body: NewExperiment) -> list[FieldError]:
    """Return an error where values are not of one type: a client asks for a flag of a type."""
    first = type(body.variants[0].value)
    return [
        FieldError(f"/variants/{index}/value", "Expected a value in every variant, of one type, or in none")
        for index, variant in enumerate(body.variants)
        if type(variant.value) is not first
    ]


def _canary(body: NewCanary) -> Canary:
    steps = Canary().steps if body.steps is None else tuple(body.steps)
    return Canary(steps, body.min_seconds, body.min_samples, body.requires_approval)


def _values(body: Input) -> list[Any]:
    return [getattr(body, name) for name in body.__struct_fields__]
