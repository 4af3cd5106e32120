"""Experiments as feature flags: the protocol to the letter, and tracked events as outcomes, on replicas in this process."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from app.shadow.flags import ContextRefused, Flags, matches, refetch_of, unit_of
from app.shadow.track import TrackedEvent, Tracking
from app.shadow.wire import Deploy, ExperimentChange, NewVariant, RollbackCall
from app.web.fields import Document
from app.web.problems import Problem
from tests.credits.ledger_client import fresh
from tests.shadow.conftest import Replicas, Shadow, calls_of, new, until

VALUES = [NewVariant("off", control=True, value=False), NewVariant("on", value=True)]


def context(unit: str | None = None, **more: Any) -> Document:
    return Document(({} if unit is None else {"targetingKey": unit}) | more)


async def made(shadow: Shadow, **fields: Any) -> str:
    name = fresh("flag")
    await calls_of(shadow).create(new(name, **({"variants": VALUES} | fields)), "key_test")
    return name


def flags_of(shadow: Shadow) -> Flags:
    return Flags(lambda: shadow.catalog)


@pytest.mark.parametrize(
    ("values", "expected"),
    [((False, True), {False, True}), (("red", "blue"), {"red", "blue"}), ((1, 2), {1, 2}), ((1.0, 2.5), {1.0, 2.5}),
     ((None, None), {"a", "b"})],
)  # fmt: skip
async def test_a_flag_has_the_value_of_its_variant_or_its_name(replicas: Replicas, values: Any, expected: set[Any]) -> None:
    shadow = await replicas.start()
    variants = [NewVariant("a", control=True, value=values[0]), NewVariant("b", value=values[1])]
    name = await made(shadow, variants=variants)

    found = [await flags_of(shadow).one(name, context(f"u{number}")) for number in range(12)]

    assert {one.value for one in found if one} == expected
    assert {type(one.value) for one in found if one} == {type(next(iter(expected)))}
    assert all(one is not None and one.reason == "SPLIT" and one.metadata["propensity"] == 0.5 for one in found)
    assert [await flags_of(shadow).one(name, context(f"u{number}")) for number in range(12)] == found


@pytest.mark.parametrize("values", [(True, None), (1, "a"), (1, 1.5), (True, 1)])
async def test_values_of_several_types_are_refused(replicas: Replicas, values: Any) -> None:
    shadow = await replicas.start()
    variants = [NewVariant("a", control=True, value=values[0]), NewVariant("b", value=values[1])]

    with pytest.raises(Problem) as refused:
        await made(shadow, variants=variants)

    assert [one.pointer for one in refused.value.errors] == ["/variants/1/value"]


async def test_the_reason_tells_where_the_experiment_stands(replicas: Replicas) -> None:
    shadow = await replicas.start()
    calls, flags = calls_of(shadow), flags_of(shadow)
    split = await made(shadow, coverage=0.5)
    sampled = await made(shadow, allocation="thompson")
    deployed, archived, rolled_back = await made(shadow), await made(shadow), await made(shadow)
    await calls.change(sampled, ExperimentChange(status="paused"), "k", None)
    await calls.deploy(deployed, Deploy("on", override=True, reason="now"), "k", "admin")
    await calls.archive(archived, "k", None)
    await calls.roll_back(rolled_back, RollbackCall("bad"), "k")

    found = {
        name: [one for unit in range(12) if (one := await flags.one(name, context(f"u{unit}")))]
        for name in (split, sampled, deployed, archived, rolled_back)
    }

    told = {name: {(one.reason, one.metadata["assignment"]) for one in ones} for name, ones in found.items()}
    assert told == {
        split: {("SPLIT", "assigned"), ("SPLIT", "outside_coverage")}, sampled: {("DISABLED", "paused")},
        deployed: {("STATIC", "deployed")}, archived: {("DISABLED", "archived")}, rolled_back: {("DISABLED", "rolled_back")},
    }  # fmt: skip
    assert {one.value for one in found[deployed]} == {True}
    assert {one.value for name in (sampled, archived, rolled_back) for one in found[name]} == {False}
    assert await flags.one(deployed, None) == found[deployed][0]


async def test_a_flag_that_is_split_needs_a_targeting_key_and_no_other_one_has_the_name(replicas: Replicas) -> None:
    shadow = await replicas.start()
    name = await made(shadow)

    for missing in (None, context(), context("")):
        with pytest.raises(ContextRefused) as refused:
            await flags_of(shadow).one(name, missing)
        assert refused.value.code == "TARGETING_KEY_MISSING"
    assert await flags_of(shadow).one(fresh("nobody"), context("u")) is None
    assert await flags_of(shadow).one("no/name", context("u")) is None


@pytest.mark.parametrize("key", [5, True, ["u"], "x" * 257, "a\nb", "4111111111111111"])
def test_a_targeting_key_is_a_short_text(key: Any) -> None:
    with pytest.raises(ContextRefused) as refused:
        unit_of(Document({"targetingKey": key}))

    assert refused.value.code == "INVALID_CONTEXT"


async def test_the_entity_tag_depends_on_the_configuration_and_on_the_whole_context(replicas: Replicas) -> None:
    shadow = await replicas.start()
    name = await made(shadow)
    flags = flags_of(shadow)
    body, tag = await flags.all(context("u1", plan="pro"))

    same = await flags.all(context("u1", plan="pro"))
    others = [
        (await flags.all(one))[1] for one in (context("u2", plan="pro"), context("u1", plan="free"), context("u1"), None)
    ]
    await calls_of(shadow).change(name, ExperimentChange(coverage=0.9999), "k", None)
    changed = (await flags.all(context("u1", plan="pro")))[1]

    assert same == (body, tag)
    assert len({tag, changed, *others}) == 6


async def test_flags_for_which_redis_is_asked_are_asked_for_together(replicas: Replicas) -> None:
    shadow = await replicas.start()
    flags = flags_of(shadow)
    await flags.all(context("u1"))
    names = [await made(shadow, allocation="thompson") for _ in range(6)]
    for name in names:
        await flags.one(name, context("somebody"))
    experiments = [one for one in shadow.catalog if one.definition.name in names]

    await replicas.redis("CLIENT", "PAUSE", "5000", "WRITE")
    try:
        evaluation = asyncio.create_task(flags.all(context("u1")))
        await until(lambda: all(one._enrolment._calls for one in experiments), "a call for every flag")
    finally:
        await replicas.redis("CLIENT", "UNPAUSE")
    body, tag = await evaluation

    found = {one["key"]: one for one in msgspec.json.decode(body)["flags"]}
    assert {found[name]["metadata"]["assignment"] for name in names} == {"sampled"}
    assert list(found) == sorted(found)
    assert await flags.all(context("u1")) == (body, tag)


async def test_an_evaluation_that_names_an_event_is_no_older_than_it(replicas: Replicas) -> None:
    one, two = await replicas.start("one"), await replicas.start("two")
    name = await made(one)
    flags = flags_of(two)
    await flags.one(name, context("u1"))
    assert two._parts is not None
    await two._parts.watch.stop()  # two hears of nothing by itself
    await calls_of(one).roll_back(name, RollbackCall("bad"), "k")
    assert one.catalog.newest is not None
    told = refetch_of(one.catalog.newest)

    for mark in (None, "", "x", "-1", '"0"', "9" * 16):
        await flags.catch_up(mark)
    before = await flags.one(name, context("u1"))
    await flags.catch_up(told.etag)
    after = await flags.one(name, context("u1"))

    assert (before and before.reason, after and after.reason) == ("SPLIT", "DISABLED")
    assert msgspec.json.decode(msgspec.json.encode(told)) == {
        "type": "refetchEvaluation", "etag": told.etag, "lastModified": told.lastModified,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (None, False),
        ('"a"', True),
        ('W/"a"', True),
        ('"b", "a"', True),
        ("*", True),
        ('"b"', False),
        ("a", False),
        ("", False),
    ],
)
def test_a_tag_that_the_client_has_is_found_in_its_list(field: str | None, expected: bool) -> None:
    assert matches(field, '"a"') is expected


async def test_a_tracked_event_is_an_outcome_of_every_experiment_that_waits_for_it_once(replicas: Replicas) -> None:
    one, two = await replicas.start("one"), await replicas.start("two")
    event = fresh("purchase")
    first, second = await made(one, event=event), await made(one, event=event, allocation="thompson")
    by_name, other = await made(one), await made(one, event=fresh("other"))
    await flags_of(one).one(second, context("u1"))
    told = TrackedEvent(event, "u1", "k1", 12.5)

    counted = await Tracking(lambda: one.catalog).track(told)
    await two.catalog.find(first)
    await two.catalog.find(second)
    again = await Tracking(lambda: two.catalog).track(told)
    not_done = await Tracking(lambda: one.catalog).track(TrackedEvent(by_name, "u2", "k2", 0))
    stranger = await Tracking(lambda: one.catalog).track(TrackedEvent(event, "stranger", "k3"))

    assert (sorted(counted.experiments), counted.accepted, counted.duplicates) == (sorted([first, second]), 2, 0)
    assert (sorted(again.experiments), again.accepted, again.duplicates) == (sorted([first, second]), 0, 2)
    assert (not_done.experiments, not_done.accepted) == ([by_name], 1)
    assert stranger.experiments == [first], "a unit that was never sampled takes no part under Thompson sampling"
    totals = []
    for name in (first, second, by_name, other):
        arms = (await calls_of(two).analysis(name, 1, 0)).variants
        totals.append((sum(arm.samples for arm in arms), sum(arm.successes for arm in arms)))
    assert totals == [(2, 2), (1, 1), (1, 0), (0, 0)]
