"""The service locator: who is registered, who is healthy, how calls are spread, and what keeps the registry true."""

from __future__ import annotations

from typing import Final

from grafana.board import Board, Row
from grafana.panels import GREEN, NONE_IS_GOOD, RED, SOME_IS_GOOD, YELLOW, lines, number
from grafana.promql import Query, highest, lowest, quantiles, rate, share
from grafana.served import DURATION, LATENCY_STEPS

ALERTS: Final = {
    "Instances down": ("LocatorInstancesLost",),
    "Following": ("LocatorNotFollowing",),
    "Panics": ("LocatorPanic",),
}
"""The alerts on what panels show."""


def _now() -> Row:
    reports = share("shieldx_locator_reports_total", 'ok="false"')
    return Row(
        "Now",
        (
            number("Services", "Services that have instances.", "none", Query(highest("shieldx_locator_services"))),
            number(
                "Instances up",
                "Instances that beat and pass their checks.",
                "none",
                Query(highest("shieldx_locator_instances", where='state="up"')),
                steps=SOME_IS_GOOD,
            ),
            number(
                "Instances down",
                "Instances whose active checks fail. They are never offered.",
                "none",
                Query(highest("shieldx_locator_instances", where='state="down"')),
                steps=NONE_IS_GOOD,
            ),
            number("Lookups", "Lookups answered per second.", "reqps", Query(rate("shieldx_locator_lookups_total"))),
            number(
                "Failed calls",
                "Share of the reported calls between services that failed.",
                "percentunit",
                Query(reports),
                steps=((None, GREEN), (0.01, YELLOW), (0.1, RED)),
            ),
            number(
                "Following",
                "Whether every replica hears the changes of the others. 0: one of them answers from what it knew.",
                "none",
                Query(lowest("shieldx_locator_following")),
                words={0: ("no", RED), 1: ("yes", GREEN)},
                steps=SOME_IS_GOOD,
            ),
        ),
    )


def _registry() -> Row:
    return Row(
        "Registry",
        (
            lines(
                "Instances by state",
                "Up: beats and passes its checks. Suspect: beats are overdue. Draining: gets nothing new. Down: its checks "
                "fail.",
                "none",
                Query(highest("shieldx_locator_instances", "state"), "{{state}}"),
                stacked=True,
            ),
            lines(
                "Changes",
                "Registrations, state changes and removals per second by replica, and the calls of Redis that carried them "
                "in batches.",
                "cps",
                Query(rate("shieldx_locator_changes_total"), "changes"),
                Query(rate("shieldx_locator_batches_total"), "batches"),
            ),
            lines(
                "Watches",
                "Watches that are open: callers who wait for changes.",
                "none",
                Query(highest("shieldx_locator_watchers", "instance"), "{{instance}}"),
            ),
            lines(
                "Checks",
                "Active checks per second, and those that failed.",
                "cps",
                Query(rate("shieldx_locator_checks_total"), "made"),
                Query(rate("shieldx_locator_failed_checks_total"), "failed"),
            ),
            lines(
                "Self-preservation",
                "Removals per second that were put off, because too many instances fell silent at once: the fault is more "
                "likely here than there.",
                "cps",
                Query(rate("shieldx_locator_kept_total"), "kept"),
            ),
            lines(
                "Whole reloads",
                "Times per second that the registry was read as a whole, after a gap in what was heard.",
                "cps",
                Query(rate("shieldx_locator_reloads_total"), "reloads"),
            ),
        ),
    )


def _calls() -> Row:
    return Row(
        "Calls between services",
        (
            lines(
                "Lookups by strategy",
                "Lookups per second by how the instance was chosen; none: there was no instance.",
                "reqps",
                Query(rate("shieldx_locator_lookups_total", "strategy"), "{{strategy}}"),
                stacked=True,
            ),
            lines(
                "Lookup time",
                "Time that lookups took, over HTTP.",
                "s",
                *quantiles(DURATION, where='route="/v1/services/{service}/lookup"'),
                steps=LATENCY_STEPS,
            ),
            lines(
                "Calls lent out",
                "Calls that were given to an instance and are not reported yet.",
                "none",
                Query(highest("shieldx_locator_leases", "instance"), "{{instance}}"),
            ),
            lines(
                "Reports",
                "Reported calls per second, by whether they succeeded.",
                "cps",
                Query(rate("shieldx_locator_reports_total", "ok"), "ok: {{ok}}"),
            ),
            lines(
                "Breakers of instances",
                "Changes per second by the state that breakers came into.",
                "cps",
                Query(rate("shieldx_locator_breaker_changes_total", "state"), "{{state}}"),
            ),
            lines(
                "Panics",
                "Lookups per second that found too few healthy instances and chose among all of them.",
                "cps",
                Query(rate("shieldx_locator_panics_total"), "panics"),
                steps=((None, GREEN), (0.01, YELLOW), (1, RED)),
            ),
        ),
    )


def locator() -> Board:
    """Return the dashboard of the registry and of the calls that it spreads."""
    return Board(
        "shieldx-locator",
        "shieldx / Service locator",
        "Registered services and instances, lookups and their strategies, reports, breakers, checks.",
        (_now(), _registry(), _calls()),
        ALERTS,
    )
