"""When a breaker opens, how it comes back, and who may open it."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from app.breaker import Admission, Breaker, BreakerPolicy, BreakerState, OpenBudget, Reporters

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


def opened(at_s: float = 0.0, **keywords: object) -> Breaker:
    """Return a breaker that three failures have opened at this time."""
    breaker = Breaker("x", **keywords)  # type: ignore[arg-type]
    for _ in range(3):
        breaker.record(at_s, ok=False)
    assert breaker.state(at_s) is OPEN
    return breaker


def failed_probe(breaker: Breaker, at_s: float) -> float:
    """Let a probe fail at this time; return for how long the breaker is open then."""
    assert breaker.admit(at_s) is Admission.PROBE
    breaker.record(at_s, ok=False, probe=True)
    return breaker.retry_at_s - at_s


def test_three_failures_in_a_row_open_it_and_a_success_between_does_not_count() -> None:
    breaker = Breaker("x")

    for ok in (False, False, True, False, False):
        breaker.record(0.0, ok=ok)
    before = breaker.state(0.0)
    breaker.record(0.0, ok=False)

    assert before is CLOSED
    assert breaker.state(0.0) is OPEN
    assert breaker.admit(29.9) is Admission.REFUSED


def test_half_of_ten_calls_within_the_window_open_it() -> None:
    breaker = Breaker("x")
    states = []

    for number in range(10):
        breaker.record(number * 0.5, ok=number % 2 == 0)
        states.append(breaker.state(number * 0.5))

    assert states == [CLOSED] * 9 + [OPEN]


def test_calls_that_left_the_window_count_no_more() -> None:
    breaker = Breaker("x")

    for number in range(9):
        breaker.record(0.0, ok=number % 2 == 0)
    breaker.record(10.0, ok=False)

    assert breaker.state(10.0) is CLOSED


def test_a_time_that_goes_back_or_leaps_far_ahead_is_survived() -> None:
    breaker = Breaker("x")

    breaker.record(1e6, ok=False)
    breaker.record(5.0, ok=True)
    breaker.record(1e12, ok=False)
    breaker.record(1e12, ok=True)

    assert breaker.state(1e12) is CLOSED


def test_after_thirty_seconds_one_of_many_callers_probes() -> None:
    breaker = opened()

    admissions = [breaker.admit(30.0) for _ in range(500)]

    assert breaker.state(30.0) is HALF_OPEN
    assert admissions == [Admission.PROBE] + [Admission.REFUSED] * 499


def test_a_probe_that_is_never_reported_is_lent_again_after_its_lease() -> None:
    breaker = opened()
    breaker.admit(30.0)

    assert breaker.admit(59.9) is Admission.REFUSED
    assert breaker.admit(60.0) is Admission.PROBE


def test_a_cancelled_probe_is_lent_again_at_once() -> None:
    breaker = opened()
    breaker.admit(30.0)

    breaker.cancel_probe()

    assert breaker.admit(30.0) is Admission.PROBE


def test_one_success_of_the_probe_closes_it_and_other_outcomes_do_not_matter() -> None:
    breaker = opened()
    breaker.admit(30.0)

    breaker.record(31.0, ok=True)
    breaker.record(31.0, ok=False)
    while_open = breaker.state(31.0)
    breaker.record(31.0, ok=True, probe=True)

    assert while_open is HALF_OPEN
    assert breaker.state(31.0) is CLOSED
    assert breaker.admit(31.0) is Admission.CALL


def test_every_failed_probe_doubles_the_open_time_up_to_the_limit_with_jitter() -> None:
    least, most = opened(draw=lambda: 0.0), opened(draw=lambda: 0.999_999)
    spans: list[list[float]] = [[], []]

    for breaker, found in zip((least, most), spans, strict=True):
        at_s = 30.0
        for _ in range(5):
            found.append(failed_probe(breaker, at_s))
            at_s += found[-1]

    assert [round(span) for span in spans[0]] == [48, 96, 192, 240, 240]
    assert [round(span) for span in spans[1]] == [72, 144, 288, 300, 300]


def test_an_outage_of_days_is_survived_and_quiet_minutes_take_its_backing_off_back() -> None:
    breaker = opened()

    for _ in range(1_100):
        open_s = failed_probe(breaker, breaker.retry_at_s)
    at_s = breaker.retry_at_s
    breaker.admit(at_s)
    breaker.record(at_s, ok=True, probe=True)

    assert 240.0 <= open_s <= 300.0
    assert breaker.is_spent(at_s + 5 * 60.0)


def test_it_is_spent_once_nothing_it_counted_matters_any_more() -> None:
    fresh, failed, backing_off = Breaker("x"), Breaker("x"), opened()

    failed.record(0.0, ok=False)
    failed.record(0.0, ok=True)
    backing_off.admit(30.0)
    backing_off.record(30.0, ok=True, probe=True)

    assert fresh.is_spent(0.0)
    assert (failed.is_spent(9.0), failed.is_spent(10.0)) == (False, True)
    assert (backing_off.is_spent(89.0), backing_off.is_spent(90.0)) == (False, True)


@settings(max_examples=60)
@given(calls=st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=60))
def test_it_opens_exactly_when_half_of_ten_calls_of_the_last_ten_seconds_failed(calls: list[tuple[int, bool]]) -> None:
    breaker = Breaker("x", BreakerPolicy(failures_in_row=10**6))
    told: list[tuple[int, bool]] = []
    now_s = 0

    for waited_s, ok in calls:
        now_s += waited_s
        told.append((now_s, ok))
        breaker.record(float(now_s), ok=ok)
        recent = [one for at_s, one in told if at_s > now_s - 10]
        due = not ok and len(recent) >= 10 and 2 * recent.count(False) >= len(recent)
        assert (breaker.state(float(now_s)) is OPEN) == due
        if due:
            return


def test_opening_soon_after_closing_lasts_longer_and_quiet_minutes_take_that_back() -> None:
    spans = []
    for quiet_s in (1.0, 61.0):
        breaker = opened(draw=lambda: 0.5)
        breaker.admit(30.0)
        breaker.record(30.0, ok=True, probe=True)
        for _ in range(3):
            breaker.record(30.0 + quiet_s, ok=False)
        spans.append(breaker.retry_at_s - 30.0 - quiet_s)

    assert spans == [60.0, 30.0]


def test_a_budget_keeps_breakers_beyond_it_closed_and_marks_them() -> None:
    budget = OpenBudget(1)
    first, second = Breaker("a", budget=budget), Breaker("b", budget=budget)

    for breaker in (first, second):
        for _ in range(3):
            breaker.record(0.0, ok=False)

    assert (first.state(0.0), second.state(0.0)) == (OPEN, CLOSED)
    assert (first.degraded, second.degraded) == (False, True)


def test_a_breaker_over_budget_opens_at_its_next_failure_once_there_is_room() -> None:
    budget = OpenBudget(1)
    first, second = Breaker("a", budget=budget), Breaker("b", budget=budget)
    for breaker in (first, second):
        for _ in range(3):
            breaker.record(0.0, ok=False)

    first.retire()
    second.record(1.0, ok=False)

    assert second.state(1.0) is OPEN
    assert not second.degraded


def test_one_reporter_alone_cannot_open_it_while_others_report() -> None:
    heard = Reporters()
    breaker = Breaker("x", heard=heard)
    heard.hear("good", 0.0)

    for number in range(100):
        breaker.record(number * 0.1, ok=False, reporter="bad")

    assert breaker.state(10.0) is CLOSED


def test_a_second_reporter_that_fails_too_opens_it() -> None:
    breaker = Breaker("x")
    breaker.record(0.0, ok=True, reporter="b")
    for _ in range(5):
        breaker.record(1.0, ok=False, reporter="a")
    alone = breaker.state(1.0)

    breaker.record(1.5, ok=False, reporter="b")

    assert alone is CLOSED
    assert breaker.state(1.5) is OPEN


def test_the_only_reporter_opens_it_once_the_others_are_silent_for_a_minute() -> None:
    breaker = Breaker("x")
    breaker.record(0.0, ok=True, reporter="b")

    for _ in range(3):
        breaker.record(61.0, ok=False, reporter="a")

    assert breaker.state(61.0) is OPEN


def test_isolating_opens_it_until_it_is_reset_and_takes_nothing_of_the_budget() -> None:
    budget = OpenBudget(0)
    breaker = Breaker("x", budget=budget)

    breaker.isolate(0.0)
    later = breaker.admit(1e9)
    breaker.reset(1e9)

    assert later is Admission.REFUSED
    assert breaker.state(1e9) is CLOSED
    assert budget.taken == 0


def test_every_change_is_told_with_the_state_before_and_the_state_now() -> None:
    told: list[tuple[str, str]] = []
    breaker = opened(on_change=lambda one, before, now_s: told.append((str(before), str(one.state(now_s)))))

    failed_probe(breaker, 30.0)
    breaker.admit(breaker.retry_at_s)
    breaker.cancel_probe()
    breaker.admit(breaker.retry_at_s)  # half open still: not told twice
    breaker.record(200.0, ok=True, probe=True)
    breaker.isolate(200.0)
    breaker.reset(201.0)
    breaker.reset(201.0)

    assert told == [
        ("closed", "open"), ("open", "half_open"), ("half_open", "open"), ("open", "half_open"), ("half_open", "closed"),
        ("closed", "open"), ("open", "closed"),
    ]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("fffsoirx")), max_size=80), st.integers(0, 1_000))
def test_the_budget_counts_what_is_open_whatever_happens(steps: list[tuple[int, str]], seed: int) -> None:
    budget = OpenBudget(2)
    draw = random.Random(seed).random
    breakers = [Breaker(str(number), BreakerPolicy(), budget=budget, draw=draw) for number in range(4)]
    now_s = 0.0

    for number, step in steps:
        breaker = breakers[number]
        now_s += 7.0
        match step:
            case "f" | "s":
                probe = breaker.admit(now_s) is Admission.PROBE
                breaker.record(now_s, ok=step == "s", probe=probe)
            case "o":
                breaker.admit(now_s)
            case "i":
                breaker.isolate(now_s)
            case "r":
                breaker.reset(now_s)
            case "x":
                breaker.cancel_probe()

    for breaker in breakers:
        breaker.isolated = False
    open_now = sum(breaker.state(now_s) is not CLOSED for breaker in breakers)
    assert budget.taken == open_now <= 2
