"""What counts the series: histograms, shared families, the lag of the event loop, answers to operations."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from app.actor import ActorStopped
from app.audit.entry import Event
from app.audit.shard import Shard
from app.credits.book import Book
from app.credits.ledger import Ledger
from app.credits.operation import Applied, Done, IdMask, Refused, Reused
from app.credits.tally import Tally
from app.db.redis import RedisLink
from app.db.topology import make_topology
from app.loop_lag import LoopLag
from app.metrics import Histogram, Metrics, labelled
from app.shadow.series import Counts, ShadowSeries

APPLIED = Applied((Event(0, 1, 0, 0, "topup", "t", "a", "b", 1, 1, 0, 1, "id"),))


def operations_of(tally: Tally) -> dict[tuple[str, str], float]:
    """Return what a tally shows, without what is 0."""
    samples = [sample for family in tally.collect() for sample in family.samples if "op" in sample.labels]
    return {(one.labels["op"], one.labels["result"]): one.value for one in samples if one.value}


def test_a_value_on_a_bound_falls_into_the_bucket_below_it() -> None:
    histogram = Histogram((1.0, 2.0))

    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        histogram.take(value)
    histogram.take(9.0, 3)

    assert (histogram.counts, histogram.sum) == ([2, 2, 4], 34.5)


def test_histograms_of_the_same_bounds_add_up() -> None:
    one, other = Histogram((1.0, 2.0)), Histogram((1.0, 2.0))
    one.take(0.5)
    other.take(1.5, 2)

    one.add(other)

    buckets = [(sample.labels["le"], sample.value) for sample in one.family("x", "X").samples if "le" in sample.labels]
    assert buckets == [("1.0", 1), ("2.0", 3), ("+Inf", 3)]
    assert other.counts == [0, 2, 0]


def test_parts_that_show_the_same_family_show_it_as_one() -> None:
    metrics = Metrics()
    for number in ("1", "2"):
        metrics.add(lambda number=number: (labelled(GaugeMetricFamily, "x", "X", "shard", [(number, 1)]),))

    text = metrics.text().decode()

    assert text.count("# TYPE x gauge") == 1
    assert 'x{shard="1"} 1.0\nx{shard="2"} 1.0\n' in text


def test_requests_are_counted_by_method_route_and_status() -> None:
    metrics = Metrics()
    for method, status, seconds in (
        ("GET", 200, 0.001),
        ("GET", 200, 0.3),
        ("GET", 404, 9.0),
        ("X1", 404, 1.0),
        ("X2", 404, 1.0),
    ):
        metrics.record(method, "/v1/a/{b}", status, seconds)

    families = {family.name: family.samples for family in text_string_to_metric_families(metrics.text().decode())}

    requests = {(one.labels["method"], one.labels["status"]): one.value for one in families["http_requests"]}
    faults = {(method, status): 0 for method in ("GET", "other") for status in ("500", "503")}
    assert requests == {("GET", "200"): 2, ("GET", "404"): 1, ("other", "404"): 2} | faults, "the first fault must be a rise"
    times = [one for one in families["http_request_duration_seconds"] if one.labels["status"] == "200"]
    assert {one.labels["status"] for one in families["http_request_duration_seconds"]} == {"200", "404"}
    assert {one.labels["route"] for one in times} == {"/v1/a/{b}"}
    buckets = {one.labels["le"]: one.value for one in times if one.name.endswith("_bucket")}
    assert (buckets["0.001"], buckets["0.15"], buckets["0.5"], buckets["+Inf"]) == (1, 1, 2, 2)
    assert {one.name.rpartition("_")[2]: one.value for one in times if "le" not in one.labels} == {"count": 2, "sum": 0.301}


def test_a_fault_of_a_route_is_shown_once() -> None:
    metrics = Metrics()
    for status in (200, 503):
        metrics.record("POST", "/x", status, 0.01)

    lines = [line for line in metrics.text().decode().splitlines() if line.startswith("http_requests_total{")]

    assert [line.rpartition('status="')[2] for line in lines] == ['200"} 1.0', '503"} 1.0', '500"} 0.0']


def test_unsafe_deployments_are_not_shown_before_they_are_known() -> None:
    def names(known: tuple[()] | None, promoted: int | None) -> set[str]:
        return {family.name for family in ShadowSeries(lambda: known, Counts, lambda: promoted).collect()}

    assert names((), 0) - names(None, 0) == {"shadow_deployments_without_testing"}
    assert names((), 0) - names((), None) == {"shadow_deployments_without_testing"}


async def test_the_lag_is_by_how_much_a_timer_was_missed() -> None:
    now_s = 100.0
    lag = Histogram((0.01, 0.1))
    sampler = LoopLag(lag, interval_s=0.001, clock_s=lambda: now_s)

    sampler.start()
    now_s += 0.001 + 0.05  # the loop was held up for 50 ms
    async with asyncio.timeout(20):
        while not lag.sum:
            await asyncio.sleep(0)
    sampler.stop()
    counts = list(lag.counts)
    await asyncio.sleep(0.005)

    assert lag.counts == counts
    assert counts[1:] == [1, 0]
    assert lag.sum == pytest.approx(0.05)


def test_an_answer_counts_once_by_what_was_told() -> None:
    tally = Tally(lambda: 7)

    for op, outcome in (
        ("topup", APPLIED), ("topup", APPLIED._replace(replayed=True)), ("consume", Refused("no_account", (), "r")),
        ("consume", Refused("no_account", (), "r", replayed=True)), ("update", APPLIED), ("account", Reused()),
        ("claim", Reused()), ("note", APPLIED), ("prepare_out", APPLIED), ("sweep", Done(3)),
    ):  # fmt: skip
        tally.take(op, outcome)
    tally.lose(({"op": "refund"}, {"op": "settle"}))

    assert operations_of(tally) == {
        ("topup", "applied"): 1, ("topup", "replayed"): 1, ("consume", "refused"): 1, ("consume", "replayed"): 1,
        ("control", "applied"): 1, ("control", "refused"): 1, ("refund", "unavailable"): 1, ("expire", "applied"): 7,
    }  # fmt: skip
    assert tally.collisions == 1


async def test_operations_that_a_closed_ledger_does_not_take_count_as_unavailable() -> None:
    shard = Shard(0, "test")
    link = RedisLink(make_topology("redis://localhost:1"), "{s00}:")
    ledger = Ledger(shard, SimpleNamespace(), link, SimpleNamespace(), IdMask(1, 2))  # type: ignore[arg-type]
    nothing = SimpleNamespace()
    book = Book([ledger], [shard], nothing, nothing, IdMask(1, 2), nothing)  # type: ignore[arg-type]
    fields = {"op": "topup", "tenant": "t", "amount": 1}

    with pytest.raises(ActorStopped):
        book.decide_soon(dict(fields), lambda *_: None)
    with pytest.raises(ActorStopped):
        await book.decide(dict(fields))
    with pytest.raises(ActorStopped):
        await book.decide_all([dict(fields), fields | {"op": "consume"}])

    assert operations_of(book.tally) == {("topup", "unavailable"): 3, ("consume", "unavailable"): 1}
