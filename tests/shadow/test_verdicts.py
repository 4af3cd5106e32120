"""Verdicts, guardrails, canary steps and deployment checks, from counts alone."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from app.shadow.canary import waiting_for
from app.shadow.decision import belief, crossings_of, inputs_of, look_at, verdict_of
from app.shadow.definition import Canary, CanaryStep, Crossing, Definition, Guardrails, State, Variant, Verdict
from app.shadow.deployment import failed_checks
from app.shadow.evidence import crossed, e_value
from app.shadow.guardrail import trip_of
from tests.shadow.conftest import pair

HALVES = {0: (0.5, 0.5)}
WATCHED = pair(guardrails=Guardrails(error_rate=0.05, latency_ms_p95=200.0, min_samples=100))
CANARY = pair(canary=Canary((10.0, 100.0), min_seconds=10, min_samples=50))


def counts(a: tuple[int, int], b: tuple[int, int], **more: int) -> dict[str, int]:
    """Return the totals of (samples, successes) of both variants."""
    return {"n0": a[0], "s0": a[1], "S0:0": a[1], "n1": b[0], "s1": b[1], "S0:1": b[1], "X0:0": a[0], "X0:1": b[0]} | more


def decide(definition: Definition, totals: dict[str, int], state: State | None = None) -> tuple[State, Verdict | None]:
    """Return the state with what crossed at this look, and the verdict."""
    state = state or State()
    look = look_at(definition, totals, HALVES)
    after = msgspec.structs.replace(state, crossings=(*state.crossings, *crossings_of(definition, state, look, 1)))
    return after, verdict_of(definition, after, look, belief(definition, look), 1)


def test_a_clear_winner_is_one() -> None:
    _, verdict = decide(pair(), counts((5000, 500), (5000, 700)))

    assert verdict is not None
    assert (verdict.decision, verdict.variant) == ("winner", "b")
    assert len(verdict.reasons) == 4


def test_the_same_rates_are_no_verdict_however_sure_the_posterior_is_for_a_moment() -> None:
    look = look_at(pair(), counts((1000, 100), (1000, 125)), HALVES)

    state, verdict = decide(pair(), counts((1000, 100), (1000, 125)))

    assert belief(pair(), look).probability_best[1] > 0.95
    assert (state.crossings, verdict) == ((), None)


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({"min_samples": 5001}, "min_samples"),
        ({"min_lift": 0.5}, "min_lift"),
        ({"confidence": 0.9999999999999}, "probability"),
    ],
)
def test_a_crossing_without_the_other_conditions_is_kept_and_is_no_verdict(fields: dict[str, Any], missing: str) -> None:
    definition = pair(**fields)

    state, verdict = decide(definition, counts((5000, 500), (5000, 640)))

    assert [one.variant for one in state.crossings] == ["b"]
    assert verdict is None, missing


def test_a_crossing_counts_when_the_evidence_has_fallen_since() -> None:
    state = State(crossings=(Crossing("b", harm=False, at_ms=1, inputs={}),))

    _, verdict = decide(pair(), counts((1000, 100), (1000, 130)), state)

    assert verdict is not None
    assert verdict.decision == "winner"


def test_a_crossing_is_noted_once() -> None:
    state, _ = decide(pair(min_samples=9999), counts((5000, 500), (5000, 700)))

    again, _ = decide(pair(min_samples=9999), counts((6000, 600), (6000, 840)), state)

    assert again.crossings == state.crossings


def test_challengers_that_are_all_worse_stop_the_test() -> None:
    _, verdict = decide(pair(), counts((5000, 700), (5000, 500)))

    assert verdict is not None
    assert (verdict.decision, verdict.variant) == ("stopped", None)


def test_a_lift_that_is_shown_to_be_below_the_least_one_is_no_difference() -> None:
    _, verdict = decide(pair(min_lift=0.2), counts((60_000, 6000), (60_000, 6050)))

    assert verdict is not None
    assert verdict.decision == "no_difference"


def test_several_challengers_need_more_evidence_each() -> None:
    three = pair(variants=(Variant("a", control=True), Variant("b"), Variant("c")))
    totals = counts((2000, 200), (2000, 273), n2=2000, s2=200) | {"S0:2": 200}

    single = look_at(pair(), totals, HALVES)
    several = look_at(three, totals, {0: (1 / 3, 1 / 3, 1 / 3)})

    assert single.e_values[0] == pytest.approx(several.e_values[0], rel=0.01)
    assert 50 < single.e_values[0] < 100
    assert crossings_of(pair(), State(), single, 1)
    assert not crossings_of(three, State(), several, 1)


def test_a_verdict_can_be_computed_again_from_its_inputs() -> None:
    totals = counts((5000, 500), (5000, 700))

    inputs = inputs_of(pair(), look_at(pair(), totals, HALVES))

    assert e_value(inputs["statistics"]["b"], inputs["null_ratio"]) == inputs["e_values"]["b"]
    assert crossed(inputs["e_values"]["b"], inputs["max_false_positive"], 1)


def test_more_errors_than_the_control_trip_the_guardrail() -> None:
    trip = trip_of(
        WATCHED, counts((2000, 0), (2000, 0), e0=10, e1=70) | {"E0:0": 10, "E0:1": 70, "FE1": 70, "TE1": 2000}, HALVES
    )

    assert trip is not None
    assert (trip.variant, trip.guardrail, trip.test) == ("b", "error_rate", "control")


def test_errors_above_the_limit_trip_although_the_control_has_as_many() -> None:
    totals = counts((2000, 0), (2000, 0), e0=300, e1=300) | {"E0:0": 300, "E0:1": 300, "FE1": 300, "TE1": 2000}

    trip = trip_of(WATCHED, totals, HALVES)

    assert trip is not None
    assert (trip.guardrail, trip.test) == ("error_rate", "limit")


def test_slow_calls_trip_the_latency_guardrail() -> None:
    totals = counts((2000, 0), (2000, 0), l0=2000, l1=2000, o0=20, o1=300) | {
        "O0:0": 20,
        "O0:1": 300,
        "FO1": 300,
        "TO1": 2000,
    }

    trip = trip_of(WATCHED, totals, HALVES)

    assert trip is not None
    assert trip.guardrail == "latency_ms_p95"


@pytest.mark.parametrize(
    "totals",
    [
        {},
        counts((99, 0), (99, 0), e1=99) | {"E0:1": 99, "FE1": 99, "TE1": 99},
        counts((2000, 0), (2000, 0), e0=40, e1=44) | {"E0:0": 40, "E0:1": 44, "FE1": 44, "TE1": 2000},
    ],
    ids=["nothing", "too few", "nearly the same"],
)
def test_a_guardrail_holds_without_enough_data_or_difference(totals: dict[str, int]) -> None:
    assert trip_of(WATCHED, totals, HALVES) is None


def held(totals: dict[str, int], at_ms: int = 10_000, *, forced: bool = False, **fields: Any) -> tuple[str, ...]:
    """Return what the first step of the canary waits for."""
    state = msgspec.structs.replace(State(step=CanaryStep(0, 0, (5, 5))), **fields)
    return waiting_for(CANARY, state, totals, (0.5, 0.5), at_ms, forced=forced)


def test_a_canary_goes_on_after_its_time_and_its_outcomes() -> None:
    assert held(counts((55, 0), (55, 0))) == ()


def test_a_canary_without_data_holds_even_when_it_is_forced() -> None:
    assert held({}, at_ms=10**9) == ("55 outcomes of a", "55 outcomes of b")
    assert held(counts((500, 0), (54, 0)), forced=True) == ("1 outcomes of b",)


def test_a_forced_step_does_not_wait_for_time() -> None:
    assert held(counts((55, 0), (55, 0)), at_ms=0) == ("10 seconds",)
    assert held(counts((55, 0), (55, 0)), at_ms=0, forced=True) == ()


def test_a_paused_or_stopped_experiment_does_not_go_on() -> None:
    stopped = Verdict("stopped", None, ("harm",), 1, {})

    assert held(counts((55, 0), (55, 0)), status="paused") == ("the experiment is paused",)
    assert held(counts((55, 0), (55, 0)), verdict=stopped, forced=True) == ("the test has stopped: harm",)


def test_a_control_that_gets_nobody_is_not_waited_for() -> None:
    state = State(step=CanaryStep(1, 0, (5, 5)))

    assert waiting_for(CANARY, state, counts((5, 0), (55, 0)), (0.0, 1.0), 10_000) == ()


def checks(definition: Definition, totals: dict[str, int], state: State) -> list[str]:
    """Return the names of the checks that fail."""
    look = look_at(definition, totals, HALVES)
    return [one.check for one in failed_checks(definition, state, totals, HALVES, look, belief(definition, look), 1)]


def test_every_failed_check_of_a_deployment_is_named() -> None:
    definition = pair(guardrails=Guardrails(error_rate=0.05), canary=Canary((50.0,)), min_samples=5000)
    totals = counts((2000, 200), (1500, 100), e0=10, e1=90) | {"E0:0": 10, "E0:1": 90, "FE1": 90, "TE1": 1500}

    failed = checks(definition, totals, State(status="paused", step=CanaryStep(0, 0, (0, 0))))

    assert failed == [
        "decision", "evidence", "min_samples", "min_lift", "probability_best", "sample_ratio", "guardrails", "canary", "running",
    ]  # fmt: skip


def test_a_winner_passes_and_the_control_always_does() -> None:
    totals = counts((5000, 500), (5000, 700))
    state, verdict = decide(pair(), totals)

    won = msgspec.structs.replace(state, verdict=verdict)

    assert checks(pair(), totals, won) == []
    look = look_at(pair(), totals, HALVES)
    assert failed_checks(pair(), State(), totals, HALVES, look, belief(pair(), look), 0) == ()
