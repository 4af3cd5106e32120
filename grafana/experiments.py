"""Experiments, deployments and rules: what is believed of each variant, what came in, what was rolled back."""

from __future__ import annotations

from typing import Final

from grafana.board import Board, Row
from grafana.panels import GREEN, NONE_IS_GOOD, RED, YELLOW, lines, number, rows
from grafana.promql import SHOWN, Query, aggregate, chosen, highest, increase, quantile, rate, share
from grafana.served import DURATION, ERROR_STEPS, FAILED, LATENCY_STEPS, REQUESTS

BEST: Final = "shadow_test_probability_best"
COUNT: Final = "shadow_test_sample_count"
CALLS: Final = 'route=~"/v1/(experiments|rules|track).*|/ofrep/.*"'
ALERTS: Final = {
    "Deployed without testing": ("ShadowUnsafeDeployment",),
    "Canary rollbacks": ("ShadowCanaryRolledBack",),
    "Probability to be best": ("ShadowTestInconclusive",),
    "Outcomes by result": ("ShadowOutcomesRejected",),
}
"""The alerts on what panels show."""


def _now() -> Row:
    tests = f"count({aggregate('count', chosen(COUNT), 'test')}) or vector(0)"
    return Row(
        "Now",
        (
            number(
                "Tests",
                "Experiments with counts of their own here: those that were told something last.",
                "none",
                Query(tests),
            ),
            number(
                "Outcomes", "Outcomes per second that were reported.", "cps", Query(rate("shieldx_shadow_outcomes_total"))
            ),
            number(
                "Deployed without testing",
                "Deployments of variants and promotions of rules over failed checks, since the beginning.",
                "none",
                Query(highest("shadow_deployments_without_testing")),
                steps=((None, GREEN), (1, YELLOW)),
            ),
            number(
                "Canary rollbacks",
                "Canaries that were rolled back in the time that is shown.",
                "none",
                Query(increase("shieldx_canary_rollbacks_total", over=SHOWN)),
                steps=NONE_IS_GOOD,
            ),
            number(
                "Rules waiting",
                "Evaluations that wait to be compared with the challenger's, of the fullest replica.",
                "none",
                Query(highest("shieldx_rules_waiting")),
            ),
            number(
                "Comparisons dropped",
                "Comparisons per second that were given up because too many waited.",
                "cps",
                Query(rate("shieldx_rules_dropped_total")),
                steps=((None, GREEN), (0.01, YELLOW), (1, RED)),
            ),
        ),
    )


def _tests() -> Row:
    return Row(
        "Tests",
        (
            lines(
                "Probability to be best",
                "What is believed now of each variant: that its rate is the highest. A single look; the verdict of a test "
                "accounts for many.",
                "percentunit",
                Query(highest(BEST, "test", "variant"), "{{test}} {{variant}}"),
                width=12,
                top=1,
            ),
            lines(
                "Samples",
                "Outcomes counted for each variant. Uneven growth where the split is even points at lost outcomes.",
                "none",
                Query(highest(COUNT, "test", "variant"), "{{test}} {{variant}}"),
                width=12,
            ),
            rows(
                "Tests now",
                "Each variant of each test with the probability that it is the best.",
                "percentunit",
                Query(highest(BEST, "test", "variant")),
                {"test": "Test", "variant": "Variant"},
                value="Probability",
                width=12,
            ),
            rows(
                "Samples now",
                "Each variant of each test with the outcomes that are counted.",
                "short",
                Query(highest(COUNT, "test", "variant")),
                {"test": "Test", "variant": "Variant"},
                value="Samples",
                width=12,
            ),
        ),
    )


def _traffic() -> Row:
    return Row(
        "Calls",
        (
            lines(
                "Outcomes by result",
                "Outcomes per second by what became of them: counted, known already, refused.",
                "cps",
                Query(rate("shieldx_shadow_outcomes_total", "result"), "{{result}}"),
                stacked=True,
            ),
            lines(
                "Calls by route",
                "Requests per second to experiments, rules and feature flags.",
                "reqps",
                Query(rate(REQUESTS, "method", "route", where=CALLS), "{{method}} {{route}}"),
            ),
            lines(
                "Failed calls",
                "Share of these requests that were answered 5xx.",
                "percentunit",
                Query(share(REQUESTS, FAILED, where=CALLS), "failed"),
                steps=ERROR_STEPS,
            ),
            lines(
                "p95 of assignments",
                "Time within which 95 of 100 units were told their variant.",
                "s",
                Query(quantile(0.95, DURATION, where='route="/v1/experiments/{name}/assign"'), "assign"),
                steps=LATENCY_STEPS,
            ),
            lines(
                "p95 of evaluations",
                "Time within which 95 of 100 evaluations of a rule were answered.",
                "s",
                Query(quantile(0.95, DURATION, where='route="/v1/rules/{name}/evaluate"'), "evaluate"),
                steps=LATENCY_STEPS,
            ),
            lines(
                "Challenger comparisons",
                "Evaluations per second that the challenger of a rule did too, beside the caller's way.",
                "cps",
                Query(rate("shieldx_rules_compared_total"), "compared"),
                Query(rate("shieldx_rules_dropped_total"), "dropped"),
            ),
        ),
    )


def experiments() -> Board:
    """Return the dashboard of what is tested before it is deployed."""
    return Board(
        "shieldx-experiments",
        "shieldx / Experiments",
        "Tests and what is believed of their variants, outcomes, canaries, rules and their challengers.",
        (_now(), _tests(), _traffic()),
        ALERTS,
        time_from="now-6h",
    )
