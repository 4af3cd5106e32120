"""Who waits for changes: bounded, woken together, and given what they missed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from app.locator.directory import ALL, Directory
from app.locator.reading import Reading
from app.locator.record import Fact, encode
from app.locator.roster import Roster
from app.web import watches as watches_of_process
from app.web.problems import Problem
from app.web.watches import Watches
from tests.locator.replicas import instance


def change(revision: int, id_: str, service: str = "web", kind: str = "put") -> list[object]:
    body = "" if kind in {"drop", "evict"} else encode(instance(port=revision)).decode()
    return [revision, kind, f"{service}/{id_}", "up", "none", "none", "g1", body]


def fact(revision: int, id_: str) -> Fact:
    return Fact(revision, "up", "none", "none", "g1", str(change(revision, id_)[-1]))


def begin(directory: Directory, facts: dict[str, Fact], revision: int, *, same: bool) -> Iterator[list[Any]]:
    """Read these instances, and return the steps in which they are taken over."""
    read = Reading(directory, revision, same=same)
    for field, one in facts.items():
        read.add(field, one, 3.0)
    return directory.reconcile(read, 3.0, reached=revision, silent_s={})


def read_all(directory: Directory, facts: dict[str, Fact], revision: int, *, same: bool) -> list[Any]:
    return [one for step in begin(directory, facts, revision, same=same) for one in step]


async def test_all_that_watch_a_service_are_woken_by_one_change_and_nobody_else() -> None:
    watches = Watches()
    directory = Directory(on_change=lambda service: watches.changed(service.name, ALL))
    web = [asyncio.create_task(watches.wait("web", 30)) for _ in range(100)]
    everything, other = (asyncio.create_task(watches.wait(name, 30)) for name in (ALL, "other"))
    await asyncio.sleep(0)

    directory.apply([change(2, "a"), change(3, "b")], 0.0)
    await asyncio.gather(*web, everything)

    assert not other.done()
    watches.close()
    await other
    await watches.wait("web", 30)


async def test_watchers_are_bounded_in_all_and_for_each_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches_of_process, "WATCHERS_OF_KEY_MAX", 2)
    monkeypatch.setattr(watches_of_process, "WATCHERS_MAX", 3)
    watches = Watches()

    with watches.enter("k1"), watches.enter("k1"), watches.enter("k2"):
        for key in ("k1", "k3"):
            with pytest.raises(Problem) as refused, watches.enter(key):
                pass
            assert (refused.value.status, refused.value.code) == (503, "too_many_watchers")

    assert watches.open == 0


def test_a_watcher_gets_what_it_missed_or_hears_that_it_must_read_all() -> None:
    directory = Directory()
    for revision, id_ in ((2, "a"), (3, "b"), (4, "a")):
        directory.apply([change(revision, id_)], 0.0)
    directory.apply([change(5, "b", kind="drop")], 0.0)
    web: Roster = directory.services["web"]

    assert web.changed_since(5) == frozenset()
    assert web.changed_since(4) == {"b"}
    assert web.changed_since(2) == {"a", "b"}
    assert web.changed_since(17) is None
    assert web.changed_since(0) is None


def test_no_two_replicas_give_one_number_to_different_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.locator.roster.random", Random(7))
    one, other = Directory(), Directory()
    for directory in (one, other):
        directory.apply([change(2, "a", kind="restore"), change(3, "b", kind="restore")], 0.0)
    for directory, id_ in ((one, "a"), (other, "b")):
        web = directory.services["web"]
        directory.beat(web, id_, web.records[id_], 1.0)
    late = change(4, "c")
    for directory in (one, other):
        directory.apply([late], 2.0)

    seen = [{revision for _, revision, _ in directory.services["web"].history} for directory in (one, other)]

    assert seen[0] & seen[1] == {3}
    assert one.services["web"].changed_since(3) == {"a", "c"}


def test_the_index_of_all_moves_with_every_change_also_beyond_what_redis_has_counted() -> None:
    directory = Directory()
    directory.apply([change(2, "a"), change(3, "x", "other")], 0.0)
    directory.restate(directory.services["web"], ("a",), 1.0)
    seen = [(directory.index, directory.catalogue)]

    for revision in (4, 5):
        directory.apply([change(revision, f"x{revision}", "other")], 2.0)
        seen.append((directory.index, directory.catalogue))
    read_all(directory, {"web/a": fact(2, "a")}, 6, same=True)
    seen.append((directory.index, directory.catalogue))

    assert seen[0][1] == 3
    assert all(before[0] < after[0] and before[1] < after[1] for before, after in pairwise(seen))


def test_changes_that_are_known_or_older_change_nothing() -> None:
    directory = Directory()
    directory.apply([change(4, "a")], 0.0)
    before = directory.services["web"].snapshot

    directory.apply([change(4, "a"), change(3, "a"), change(2, "a", kind="drop")], 0.0)
    assert directory.services["web"].snapshot is before

    directory.apply([change(6, "a", kind="drop"), change(5, "a")], 0.0)
    assert directory.services["web"].snapshot.by_id == {}
    assert (directory.instances, directory.leased, dict(directory.owned)) == (0, 0, {})


def test_a_watcher_hears_after_a_restart_of_what_ended_meanwhile() -> None:
    before, after = Directory(), Directory()
    before.apply([change(2, "ended"), change(3, "left")], 0.0)
    seen = before.services["web"].snapshot.revision

    read_all(after, {"web/left": fact(3, "left")}, 4, same=False)

    assert after.services["web"].changed_since(seen) is None
    assert after.services["web"].snapshot.revision > 4


def test_what_other_data_has_counted_is_newer_than_what_was_known_before() -> None:
    directory = Directory()
    directory.apply([change(400, "a"), change(401, "b")], 0.0)

    forgotten = read_all(directory, {}, 0, same=False)
    directory.apply([change(2, "a", kind="drop")], 2.0)

    assert sorted(field for field, _ in forgotten) == ["web/a", "web/b"]
    assert set(directory.services["web"].snapshot.by_id) == {"b"}


def test_a_whole_reading_is_taken_over_in_steps_and_never_over_what_changed_between_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.locator.directory.STEP_INSTANCES", 2)
    steps: list[list[tuple[str, int]]] = []
    directory = Directory(on_change=lambda service: steps[-1].append((service.name, len(service.snapshot.changed))))
    steps.append([])
    directory.apply([change(2 + number, f"i{number}") for number in range(6)], 0.0)
    held = {f"web/i{number}": fact(12 + number, f"i{number}") for number in range(4)}
    held |= {f"new/{number}": fact(20 + number, f"{number}") for number in range(5)}

    steps.append([])
    for number, forgotten in enumerate(begin(directory, held, 30, same=True)):
        assert {field for field, _ in forgotten} <= {"web/i2", "web/i3", "new/0"}  # laid again, which changes nothing
        steps.append([])
        if number == 0:  # after Redis was read, and before all of it is taken over
            directory.apply([change(40, "i3"), change(41, "0", "new"), change(42, "i2", kind="drop")], 4.0)
            steps.append([])

    snapshots = {name: service.snapshot for name, service in directory.services.items()}
    web = snapshots["web"].by_id
    assert [step for step in steps if step][1:] == [
        [("web", 2)], [("web", 2), ("new", 1)], [("web", 2)], [("new", 1)], [("new", 2)], [("new", 1)],
    ]  # fmt: skip
    assert {id_: one.facts.port for id_, one in web.items()} == {"i0": 12, "i1": 13, "i3": 40}
    assert directory.instances == len(web) + len(snapshots["new"].by_id) == 8


def test_a_service_that_was_not_there_begins_with_all_of_its_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.locator.directory.STEP_INSTANCES", 2)
    published: list[tuple[str, int]] = []
    directory = Directory(on_change=lambda service: published.append((service.name, len(service.snapshot.by_id))))

    read_all(directory, {f"{name}/{id_}": fact(2, id_) for name in ("a", "b") for id_ in "vwxyz"}, 30, same=False)

    assert published == [("a", 5), ("b", 5)]


def test_the_index_of_the_catalogue_stands_still_while_ids_and_tags_do() -> None:
    directory = Directory()
    directory.apply([change(2, "a")], 0.0)
    directory.apply([change(3, "a")], 0.0)
    assert (directory.index, directory.catalogue) == (3, 2)

    directory.apply([change(4, "a", kind="drop")], 0.0)
    assert directory.catalogue == 4
    directory.purge(599.0)
    assert directory.get("web") is not None
    directory.purge(600.0)
    assert directory.get("web") is None
