"""The report of a trial, and whether its challenger may become the champion. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from app import __version__
from app.clock import ms_of, time_text
from app.shadow.rules_difference import KINDS
from app.shadow.rules_tally import percentile_us
from app.shadow.rules_verdict import is_flagged, statement_of
from app.shadow.rules_wire import FieldView, RateView, Report, SampleView, Statement, TimesView

if TYPE_CHECKING:
    from app.shadow.rules_definition import Rule, Version
    from app.shadow.rules_exchange import Gathered
    from app.shadow.rules_store import Sample
    from app.shadow.rules_tally import Tally
    from app.shadow.rules_verdict import RateInterval


def report_of(rule: Rule, trial: int, gathered: Gathered) -> Report:
    """Return what was counted of a trial. Its versions are not known of a former trial in which nothing was evaluated."""
    tally = gathered.tally
    if trial == rule.trial:
        tally.champion = rule.champion.name
        tally.challenger = None if rule.challenger is None else rule.challenger.name
    said = statement_of(tally, crossed_before=gathered.crossed_at is not None)
    crossed_at = None if gathered.crossed_at is None else time_text(ms_of(gathered.crossed_at))
    return Report(
        name=rule.name, champion=tally.champion or None, challenger=tally.challenger, trial=trial,
        fresh=gathered.fresh, evaluated=tally.evaluated, champion_failed=tally.champion_failed,
        sampled_out=tally.sampled_out, dropped=tally.dropped, compared=tally.compared,
        differences={kind: tally.kinds.get(kind, 0) for kind in KINDS}, challenger_only=tally.challenger_only,
        noise_only=tally.noise_only, both=tally.both,
        statement=Statement(said.verdict, said.e_value, said.threshold, _rate(said.difference_rate), _rate(said.noise_rate),
                            said.excess_rate, crossed_at),
        fields=[
            FieldView(pointer, raw, noise, is_flagged(raw, noise, tally.compared))
            for pointer, (raw, noise) in sorted(tally.fields.items(), key=lambda item: (-item[1][0], item[0]))
        ],
        champion_us=_times(tally.champion_us), challenger_us=_times(tally.challenger_us),
        samples=[_sample(one) for one in gathered.samples],
    )  # fmt: skip


def failed_checks(rule: Rule, version: Version, tally: Tally) -> list[str]:
    """Return why a version should not become the champion yet; empty for one that may, and for one that was it before.

    What is not checked is whether its answers differ: a rule is changed so that they do. The report says how.
    """
    if version.championed_at is not None:
        return []
    if rule.challenger is None or version.name != rule.challenger.name:
        return ["the version is not the challenger, so nothing is known of it"]
    failed: list[str] = []
    if tally.compared < rule.settings.min_samples:
        failed.append(f"{tally.compared} of {rule.settings.min_samples} comparisons have been made")
    for kind, text in (("challenger_error", "had no answer"), ("challenger_timeout", "spent its whole budget")):
        if tally.kinds.get(kind, 0):
            failed.append(f"the challenger {text} in {tally.kinds[kind]} comparisons in which the champion answered")
    return failed


def decision_inputs(tally: Tally, *, crossed_before: bool = False) -> dict[str, Any]:
    """Return what a decision was made from, for the chain: integers, and numbers with a point as texts."""
    said = statement_of(tally, crossed_before=crossed_before)
    return {
        "compared": tally.compared, "differences": {kind: count for kind, count in tally.kinds.items() if count},
        "challenger_only": tally.challenger_only, "noise_only": tally.noise_only, "both": tally.both,
        "dropped": tally.dropped, "e_value": repr(said.e_value), "threshold": repr(said.threshold), "verdict": said.verdict,
        "code": __version__,
    }  # fmt: skip


def _rate(found: RateInterval | None) -> RateView | None:
    return None if found is None else RateView(*found)


def _times(histogram: dict[int, int]) -> TimesView:
    return TimesView(*(percentile_us(histogram, share) for share in (0.5, 0.95, 0.99)))


def _sample(sample: Sample) -> SampleView:
    return SampleView(kind=sample.kind, **orjson.loads(sample.text))
