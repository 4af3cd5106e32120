"""Decisions computed again from the entries of the chain, as docs/verdicts.md says: with nothing of the server's code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import orjson
import pytest

from app.shadow.opening import Shadow
from app.shadow.wire import CanaryCall, Deploy, NewCanary, NewGuardrails, NewVariant
from app.turns import end_task
from tests.shadow.conftest import Replicas, calls_of, made, refused, reports, state_of, tell, until

EXACTLY: Final = 1e-9  # relative: doubles summed in another order
GUARDED: Final[dict[str, Any]] = {"guardrails": NewGuardrails(error_rate=0.05, latency_ms_p95=500.0)}
POINTS: Final = [2 * math.cos((2 * k + 1) * math.pi / 48) for k in range(24)]
_WEIGHTS: Final = [(-1) ** k * math.sin((2 * k + 1) * math.pi / 48) for k in range(24)]


def geometric(low: float, high: float) -> list[float]:
    """Return 48 numbers, evenly on a logarithmic scale."""
    return [low * (high / low) ** (i / 47) for i in range(48)]


def bets() -> list[tuple[float, float]]:
    """Return every bet with its weight."""
    places = geometric(0.004, 2.0)
    near = [d * math.exp(-(((d - 0.11) / 0.11) ** 2) / 2) for d in places]
    far = [d * math.exp(-(d**2) / 2) for d in places]
    return [(d, 0.92 * a / sum(near) + 0.08 * b / sum(far)) for d, a, b in zip(places, near, far, strict=True)]


BETS: Final = bets()


def lagrange(x: float) -> list[float]:
    """Return the weights that take the sums A_k to A(x)."""
    parts = [weight / (x - point) for weight, point in zip(_WEIGHTS, POINTS, strict=True)]
    return [part / sum(parts) for part in parts]


def evidence(statistic: Sequence[int], r0: float, side: int) -> float:
    """Return E of a statistic."""
    x, y, *sums = statistic
    origin = [0.0] * 24 if r0 == 1 else lagrange(math.log(r0))
    total = 0.0
    for d, weight in BETS:
        place = math.log(r0) + side * d
        if abs(place) > 2:
            continue
        row = [one - other for one, other in zip(lagrange(place), origin, strict=True)]
        slack = (x + y) * (0.51 * math.fsum(map(abs, row)) + 0.4)
        total += weight * math.exp(side * d * x - 1e-9 * (math.fsum(c * a for c, a in zip(row, sums, strict=True)) + slack))
    return total


def limit_evidence(failures: int, trials: int, limit: float) -> float:
    """Return E of failures against a limit."""
    return sum(math.exp(failures * d - trials * math.log1p(limit * math.expm1(d))) for d in geometric(0.02, 8.0)) / 48


def lift(statistic: Sequence[int]) -> float:
    """Return the likeliest lift, by golden section: the likelihood has one peak."""
    x, _, *sums = statistic
    ratio, (low, high) = (math.sqrt(5) - 1) / 2, (-2.0, 2.0)

    def likelihood(place: float) -> float:
        return x * place - 1e-9 * math.fsum(c * a for c, a in zip(lagrange(place), sums, strict=True))

    while high - low > 1e-7:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if likelihood(left) > likelihood(right) else (left, high)
    return math.expm1((low + high) / 2)


def best_of_two(control: tuple[int, int], other: tuple[int, int]) -> float:
    """Return the probability that the other of two variants, each (successes, samples), has the higher rate: E. Miller."""
    (s, n), (hits, count) = control, other
    a, b = hits + 1, count - hits + 1

    def log_beta(p: float, q: float) -> float:
        return math.lgamma(p) + math.lgamma(q) - math.lgamma(p + q)

    own = log_beta(s + 1, n - s + 1)
    return sum(math.exp(log_beta(s + 1 + i, n - s + 1 + b) - math.log(b + i) - log_beta(1 + i, b) - own) for i in range(a))


async def told(replicas: Replicas, name: str, kind: str) -> list[dict[str, Any]]:
    """Return the details of an experiment's entries of a kind, in their order, as the chain gets them."""
    rows = await replicas.rows(
        "SELECT details::text FROM pending_entries WHERE kind = $1 AND details ->> 'experiment' = $2 ORDER BY at",
        f"experiment.{kind}", name,
    )  # fmt: skip
    return [orjson.loads(row[0]) for row in rows]


async def nobody_looks(shadow: Shadow) -> None:
    """End the tasks of the steward, as if what is called came before its next look."""
    assert shadow._parts is not None
    for task in (shadow._parts.steward._task, shadow._parts.steward._guard_task):
        assert task is not None
        await end_task(task)


def check_evidence(inputs: dict[str, Any]) -> None:
    """Compare the e-values of inputs with those of the statistics."""
    assert float(inputs["threshold"]) == len(inputs["statistics"]) / float(inputs["max_false_positive"])
    for name, statistic in inputs["statistics"].items():
        assert evidence(statistic, 1.0, 1) == pytest.approx(float(inputs["e_values"][name]), rel=EXACTLY)
        assert evidence(statistic, 1.0, -1) == pytest.approx(float(inputs["harm_e_values"][name]), rel=EXACTLY)


async def test_a_winner_follows_from_its_entry_alone(replicas: Replicas) -> None:
    shadow = await replicas.start()
    name = await made(shadow)

    await tell(shadow, name, [*reports("a", 1500, 150), *reports("b", 1500, 225)])
    await until(lambda: state_of(shadow, name).verdict is not None, "the verdict")

    (crossing,), (verdict,) = await told(replicas, name, "crossing"), await told(replicas, name, "verdict")
    inputs = verdict["inputs"]
    check_evidence(crossing["inputs"])
    check_evidence(inputs)
    x, y, *sums = inputs["statistics"]["b"]
    assert sums == [(x + y) * round(1e9 * math.log1p(0.5 * math.expm1(point))) for point in POINTS]
    counts = [(inputs["successes"][one], inputs["samples"][one]) for one in "ab"]
    best = best_of_two(*counts)
    assert best == pytest.approx(float(inputs["probability_best"]["b"]), abs=1e-6)
    assert lift(inputs["statistics"]["b"]) == pytest.approx(float(inputs["lift"]["b"]), abs=1e-6)
    assert evidence(inputs["statistics"]["b"], 1.0, 1) >= float(inputs["threshold"])
    assert min(inputs["samples"].values()) >= inputs["min_samples"]
    assert best > float(inputs["confidence"])
    assert (verdict["decision"], verdict["variant"]) == ("winner", "b")


async def test_no_difference_follows_from_its_entry_alone(replicas: Replicas) -> None:
    shadow = await replicas.start()
    name = await made(shadow, min_lift=1.0)

    await tell(shadow, name, [*reports("a", 500, 100), *reports("b", 500, 101)])
    await until(lambda: state_of(shadow, name).verdict is not None, "the verdict")

    (verdict,) = await told(replicas, name, "verdict")
    check_evidence(verdict["inputs"])
    test = verdict["inputs"]["no_difference"]
    e = evidence(verdict["inputs"]["statistics"]["b"], 1 + float(verdict["inputs"]["min_lift"]), -1)
    assert (float(test["null_ratio"]), float(test["threshold"])) == (2.0, 50.0)
    assert e == pytest.approx(float(test["harm_e_values"]["b"]), rel=EXACTLY)
    assert e >= 50
    assert verdict["decision"] == "no_difference"


def e_of(reading: dict[str, Any]) -> float:
    """Return E of a guardrail's test."""
    if reading["test"] == "control":
        return evidence(reading["statistic"], float(reading["tolerated_ratio"]), 1)
    return limit_evidence(reading["limit_failures"], reading["limit_trials"], float(reading["limit"]))


async def test_steps_and_the_rollback_of_a_canary_follow_from_their_entries_alone(replicas: Replicas) -> None:
    shadow = await replicas.start()
    canary = NewCanary(steps=[50, 60, 100], min_seconds=0, min_samples=100)
    name = await made(shadow, canary=canary, **GUARDED)

    # In one call: successes of one variant alone would be a verdict, should somebody look in between.
    both = [report for variant in "ab" for report in reports(variant, 200, 20, errors=3, latency_ms=20)]
    await tell(shadow, name, both)
    await until(lambda: state_of(shadow, name).stage == 1, "the step")
    await tell(shadow, name, reports("b", 200, 0, errors=150))
    await until(lambda: state_of(shadow, name).rollback is not None, "the rollback")

    (step,), (rollback,) = await told(replicas, name, "step"), await told(replicas, name, "rollback")
    check_evidence(step["inputs"])
    readings = step["inputs"]["guardrails"]
    assert {(one["guardrail"], one["test"]) for one in readings} == {("error_rate", "control"), ("error_rate", "limit")}
    for one in (*readings, rollback["inputs"]):
        assert one["tests"] == 4
        assert e_of(one) == pytest.approx(float(one["e_value"]), rel=EXACTLY)
    assert max(map(e_of, readings)) < 4 / 0.02 <= e_of(rollback["inputs"])
    before, after = step["samples_before"], step["inputs"]["samples"]
    assert min(after[one] - before[one] for one in "ab") >= step["min_samples"]


async def test_a_refused_deployment_follows_from_its_entry_alone(replicas: Replicas) -> None:
    shadow = await replicas.start()
    variants = [NewVariant("a", control=True), NewVariant("b"), NewVariant("c")]
    name = await made(shadow, variants=variants, **GUARDED)
    await nobody_looks(shadow)
    await tell(shadow, name, [*reports("a", 200, 40), *reports("b", 120, 20, errors=100), *reports("c", 200, 41)])

    refusal = await refused(calls_of(shadow).deploy(name, Deploy("c"), "key_test", "operator"))

    assert refusal == (409, "unsafe_deployment")
    (entry,) = await told(replicas, name, "refusal")
    inputs, failed = entry["inputs"], dict(entry["failed"])
    check_evidence(inputs)
    own = lift(inputs["statistics"]["c"])
    assert own == pytest.approx(float(inputs["lift"]["c"]), abs=1e-6)
    assert f"{own:.4g}" in failed["min_lift"]
    expected = [float(inputs["units_expected"][one]) for one in "abc"]
    statistic = sum((inputs["units"][one] - share) ** 2 / share for one, share in zip("abc", expected, strict=True))
    assert math.exp(-statistic / 2) == pytest.approx(float(inputs["srm_p_value"]), rel=EXACTLY)
    assert "sample_ratio" in failed
    crossed = [one for one in inputs["guardrails"] if e_of(one) >= one["tests"] / 0.02]
    assert {one["variant"] for one in crossed} == {"b"}
    assert "guardrails" in failed


async def test_a_step_that_is_asked_for_does_not_begin_when_a_guardrail_is_crossed(replicas: Replicas) -> None:
    shadow = await replicas.start()
    name = await made(shadow, canary=NewCanary(steps=[50, 100], min_seconds=0, min_samples=100), **GUARDED)
    await nobody_looks(shadow)

    await tell(shadow, name, [*reports("a", 200, 0), *reports("b", 200, 0, errors=150)])
    answer = await refused(calls_of(shadow).canary(name, CanaryCall("advance"), "key_test"))

    assert answer == (409, "canary_waits")
    assert state_of(shadow, name).stage == 0
