"""What an experiment is, fixed when it is made, and where it stands: plain values, no I/O."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final, Literal

import msgspec

VARIANTS_MIN: Final = 2
VARIANTS_MAX: Final = 20  # the exact analysis of 20 takes 5 ms; with more, nobody has the traffic to tell them apart
COVERAGES_MAX: Final = 100  # changes of the coverage; every one is kept, because units were assigned under it
STEPS_MAX: Final = 20  # steps of a canary; people use five
FLOOR: Final = 0.05  # least share of a variant under Thompson sampling, as long as 20 variants fit: halves its bias

Allocation = Literal["fixed", "thompson"]
FlagValue = bool | int | float | str
Status = Literal["running", "paused", "rolled_back", "archived"]
Decided = Literal["running", "winner", "no_difference", "stopped"]


class Variant(msgspec.Struct, frozen=True):
    """One arm. Weights are relative to each other; exactly one variant of an experiment is the control.

    value  what a client of feature flags gets, of one type in all variants; None for the name of the variant
    """

    name: str
    control: bool = False
    weight: float = 1.0
    value: FlagValue | None = None


class Guardrails(msgspec.Struct, frozen=True):
    """What makes an experiment roll back: a share of errors, the 95th percentile of latency; None where not watched.

    min_samples  outcomes that a variant has before it can trip
    """

    error_rate: float | None = None
    latency_ms_p95: float | None = None
    min_samples: int = 100


class Canary(msgspec.Struct, frozen=True):
    """How the challengers get their traffic: percent of all units at each step, rising.

    min_seconds        least time at a step
    min_samples        least outcomes of every variant that takes part, at each step
    requires_approval  a step that is over waits until somebody approves it
    """

    steps: tuple[float, ...] = (1.0, 5.0, 25.0, 50.0, 100.0)
    min_seconds: int = 60
    min_samples: int = 100
    requires_approval: bool = False


class Definition(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """An experiment as it was made. Nothing here changes: another rule is another experiment.

    seed                what the hash of a unit is salted with
    min_samples         outcomes of every variant before there can be a winner
    min_lift            least relative lift of a winner over the control, 0.05 for 5 %
    confidence          what the exact probability to be best must exceed
    max_false_positive  what the anytime-valid test is held to
    event               name of the tracked event that is an outcome, None for the name of the experiment
    begins_with         probabilities of the first units under Thompson sampling, None for the weights as they are
    """

    name: str
    variants: tuple[Variant, ...]
    allocation: Allocation
    seed: str
    min_samples: int = 100
    min_lift: float = 0.05
    confidence: float = 0.95
    max_false_positive: float = 0.02
    guardrails: Guardrails | None = None
    canary: Canary | None = None
    event: str | None = None
    begins_with: tuple[float, ...] | None = None

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the variants, in their order."""
        return tuple(variant.name for variant in self.variants)

    @cached_property
    def control(self) -> int:
        """The index of the control."""
        return next(index for index, variant in enumerate(self.variants) if variant.control)

    @cached_property
    def challengers(self) -> tuple[int, ...]:
        """The indexes of all others."""
        return tuple(index for index in range(len(self.variants)) if index != self.control)

    @cached_property
    def weights(self) -> tuple[float, ...]:
        """The weights, summing to 1."""
        total = sum(variant.weight for variant in self.variants)
        return tuple(variant.weight / total for variant in self.variants)

    @property
    def first_weights(self) -> tuple[float, ...]:
        """Version 0 of the weights under Thompson sampling, which holds until something is learnt."""
        return self.begins_with or self.weights

    @property
    def floor(self) -> float:
        """The least share that Thompson sampling leaves to a variant."""
        return min(FLOOR, 0.5 / len(self.variants))

    def index_of(self, variant: str) -> int | None:
        """Return the index of a variant, None for a name that is none."""
        return self._indexes.get(variant)

    @cached_property
    def _indexes(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}


class CanaryStep(msgspec.Struct, frozen=True):
    """Where a canary stands.

    number         index into the steps
    started_at_ms  when the step began, Unix ms
    samples        outcomes of every variant by then
    approved       somebody let the next step begin
    completed      the last step is over
    """

    number: int
    started_at_ms: int
    samples: tuple[int, ...]
    approved: bool = False
    completed: bool = False


class Crossing(msgspec.Struct, frozen=True):
    """The first time the e-process of a challenger crossed its threshold: kept, whatever comes later.

    harm    it showed that the challenger is worse, not better
    inputs  what it was computed from
    """

    variant: str
    harm: bool
    at_ms: int
    inputs: dict[str, Any]


class Verdict(msgspec.Struct, frozen=True):
    """How a test ended. It never changes. `variant` is the winner, None without one."""

    decision: Decided
    variant: str | None
    reasons: tuple[str, ...]
    at_ms: int
    inputs: dict[str, Any]


class Deployment(msgspec.Struct, frozen=True):
    """Which variant all units get. `override` is the reason why failed checks were passed over."""

    variant: str
    at_ms: int
    by: str
    failed: tuple[str, ...] = ()
    override: str | None = None


class Rollback(msgspec.Struct, frozen=True):
    """Why and when all units went back to the control. `by` is a key id, or "guardrail".

    common_ms  when, by the replicas' common clock
    """

    at_ms: int
    by: str
    reason: str
    inputs: dict[str, Any]
    verified_at_ms: int | None = None
    common_ms: int = 0


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Where an experiment stands: everything about it that changes and is no count.

    coverages  share of all units that take part, 0 to 1: the last one holds, those before it held; under a canary its
               steps decide, and this stays as it is
    stage_ms   reading of the replicas' common clock when the stage began, 0 when nobody noted it
    untested   deployments for which failed checks were passed over
    """

    status: Status = "running"
    coverages: tuple[float, ...] = (1.0,)
    stage_ms: int = 0
    step: CanaryStep | None = None
    crossings: tuple[Crossing, ...] = ()
    verdict: Verdict | None = None
    deployment: Deployment | None = None
    rollback: Rollback | None = None
    untested: int = 0

    @property
    def stage(self) -> int:
        """The number of the split that holds: of the canary's step, or of the coverage."""
        return len(self.coverages) - 1 if self.step is None else self.step.number

    @property
    def began_ms(self) -> int:
        """When the stage began, by the common clock; by the wall clock, with which that began, where nobody noted it."""
        return self.stage_ms or (0 if self.step is None else self.step.started_at_ms)

    def crossing_of(self, variant: str, *, harm: bool = False) -> Crossing | None:
        """Return the first crossing of a challenger, None before it."""
        return next((one for one in self.crossings if one.variant == variant and one.harm == harm), None)
