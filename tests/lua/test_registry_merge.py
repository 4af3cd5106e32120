"""The registry's script: what each change does, what it refuses, and what the stream tells."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis

from app.db.keys import LOCATOR_BEATS, LOCATOR_CHANGES, LOCATOR_HEAD, locator_keys
from app.db.lua import load_script

MINUTE_MS = 60_000


class Script:
    """The script on an empty registry."""

    def __init__(self, connection: redis.Redis) -> None:
        """Empty it."""
        self.connection = connection
        connection.delete(*locator_keys())
        self._run = connection.register_script(load_script("registry_merge").text)

    def call(self, *changes: list[Any], replica: str = "r1", known: int = 0, allowed: int = 10) -> list[Any]:
        """Run it and return everything."""
        words = [replica, "first", known, allowed, *(json.dumps(change) for change in changes)]
        return self._run(keys=list(locator_keys()), args=words)  # type: ignore[no-any-return]

    def answers(self, *changes: list[Any], **options: Any) -> list[str]:
        """Run it and return the answers."""
        return [answer.decode() for answer in self.call(*changes, **options)[-1]]

    def entries(self) -> list[dict[str, Any]]:
        """What the stream holds, decoded."""
        return [
            {name.decode(): json.loads(value) if name != b"replica" else value.decode() for name, value in words.items()}
            for _, words in self.connection.xrange(LOCATOR_CHANGES)
        ]

    def silent_for(self, field: str, ms: int) -> None:
        """Set the last heartbeat back."""
        seconds, micros = self.connection.time()
        self.connection.hset(LOCATOR_BEATS, field, seconds * 1000 + micros // 1000 - ms)


@pytest.fixture
def script(connection: redis.Redis) -> Script:
    return Script(connection)


def put(field: str = "web/a", generation: str = "g1", body: str = "{}") -> list[Any]:
    return ["put", field, generation, MINUTE_MS, body]


def test_changes_get_revisions_in_their_order_and_are_told_to_the_replicas(script: Script) -> None:
    incarnation, revision, _, replicas, changes, answers = script.call(
        put(), put("web/b"), ["drop", "web/a", "g1", MINUTE_MS]
    )

    assert (incarnation, revision, replicas) == (b"first", b"3", [b"r1"])
    assert answers == [b"ok 1", b"ok 2", b"ok 3"]
    entry = script.entries()[0]
    assert entry["changes"] == json.loads(changes)
    assert [change[:3] for change in entry["changes"]] == [[1, "put", "web/a"], [2, "put", "web/b"], [3, "drop", "web/a"]]
    assert entry["first"] == 0


def test_a_generation_that_ended_does_not_come_back(script: Script) -> None:
    script.call(put(), put(generation="g2"))

    assert script.answers(put(generation="g1")) == ["ended 0"]
    assert script.answers(["drop", "web/a", "g1", MINUTE_MS]) == ["stale 0"]
    assert script.answers(["drop", "web/a", "", MINUTE_MS], put(generation="g2"), put(generation="g3")) == [
        "ok 3", "ended 0", "ok 4",
    ]  # fmt: skip


def test_a_mode_outlives_a_registration_and_maintenance_also_a_new_start(script: Script) -> None:
    script.call(put(), ["set", "web/a", "g1", "mode", "draining"], put(body='{"port":2}'))
    assert script.entries()[0]["changes"][-1][4] == "draining"

    script.call(put(generation="g2"), ["set", "web/a", "", "mode", "maintenance"], put(generation="g3"))

    assert [change[4] for change in script.entries()[1]["changes"]] == ["none", "maintenance", "maintenance"]


def test_a_repeated_registration_is_a_heartbeat_and_no_change(script: Script) -> None:
    script.call(put())
    script.silent_for("web/a", 30_000)

    assert script.answers(put()) == ["known 0"]
    assert script.answers(["suspect", "web/a", "g1", 20_000])[0].startswith("fresh ")
    assert script.entries()[1]["beats"] == ["web/a", "g1"]


def test_silence_is_judged_by_the_heartbeats_of_all_replicas(script: Script) -> None:
    script.call(put())
    script.silent_for("web/a", 21_000)
    script.call(["beat", "web/a", "g1", "web/a", "old", "web/none", "g1"], replica="r2")

    answer = script.answers(["suspect", "web/a", "g1", 20_000], ["evict", "web/a", "g1", 60_000])

    assert [one.split()[0] for one in answer] == ["fresh", "fresh"]
    script.silent_for("web/a", 20_001)
    assert script.answers(["suspect", "web/a", "g1", 20_000], ["suspect", "web/a", "g1", 20_000]) == ["ok 2", "known 0"]
    script.silent_for("web/a", 60_001)
    assert script.answers(["evict", "web/a", "g1", 60_000], ["evict", "web/a", "g1", 60_000]) == ["ok 3", "unknown 0"]
    assert script.connection.hlen(LOCATOR_BEATS) == 0


def test_a_heartbeat_brings_a_suspect_back(script: Script) -> None:
    script.call(put())
    script.silent_for("web/a", 21_000)
    script.call(["suspect", "web/a", "g1", 20_000])

    script.call(["beat", "web/a", "g1"])

    assert [change[1:4] for change in script.entries()[-1]["changes"]] == [["up", "web/a", "up"]]


def test_only_so_many_are_removed_for_silence_in_a_minute(script: Script) -> None:
    fields = [f"web/{number}" for number in range(6)]
    script.call(*(put(field) for field in fields))
    for field in fields:
        script.silent_for(field, 70_000)

    answers = script.answers(*(["evict", field, "g1", 60_000] for field in fields), allowed=2)

    assert answers == ["ok 7", "ok 8", *["kept 0"] * 4]
    assert script.answers(["evict", fields[-1], "g1", 60_000], allowed=2, replica="r2") == ["kept 0"]


def test_the_minute_of_removals_begins_with_the_first_one_after_a_minute(script: Script) -> None:
    fields = [f"web/{number}" for number in range(6)]
    script.call(*(put(field) for field in fields))
    for field in fields:
        script.silent_for(field, 170_000)
    script.call(*(["evict", field, "g1", 60_000] for field in fields), allowed=2)
    script.connection.hincrby(LOCATOR_HEAD, "evicting", -MINUTE_MS)

    assert script.answers(*(["evict", field, "g1", 60_000] for field in fields[2:]), allowed=1) == ["ok 9", *["kept 0"] * 3]


@pytest.mark.parametrize("forward_ms", [10 * MINUTE_MS, -10 * MINUTE_MS])
def test_a_wall_clock_that_is_set_ends_no_tombstone_and_no_replica_and_makes_nobody_silent(
    script: Script, forward_ms: int
) -> None:
    script.call(put(generation="g0"), put(), replica="r2")
    script.silent_for("web/a", 12_000)

    script.connection.hincrby(LOCATOR_HEAD, "wall", -forward_ms)
    answers = script.call(put(generation="g0"), ["suspect", "web/a", "g1", 20_000], ["suspect", "web/a", "g1", 11_000])

    assert sorted(answers[3]) == [b"r1", b"r2"]
    assert [answer.split()[0] for answer in answers[-1]] == [b"ended", b"fresh", b"ok"]


def test_clients_that_never_stop_starting_anew_do_not_fill_redis(script: Script) -> None:
    text = load_script("registry_merge").text
    assert "TOMBSTONES_MAX = 100000" in text
    few = script.connection.register_script(text.replace("TOMBSTONES_MAX = 100000", "TOMBSTONES_MAX = 3"))

    few(keys=list(locator_keys()), args=["r1", "first", 0, 10, *(json.dumps(put(generation=f"g{i}")) for i in range(9))])

    tombstones = script.connection.zrange(locator_keys()[3], 0, -1)
    assert tombstones == [b"web/a/g5", b"web/a/g6", b"web/a/g7"]


def test_a_clock_that_stepped_back_starts_the_silence_anew(script: Script) -> None:
    script.call(put())
    script.silent_for("web/a", -3_600_000)

    assert script.answers(["evict", "web/a", "g1", 60_000]) == ["fresh 0"]
    script.silent_for("web/a", 60_001)
    assert script.answers(["evict", "web/a", "g1", 60_000]) == ["ok 2"]


def test_what_redis_forgot_is_laid_once_and_revisions_never_fall(script: Script) -> None:
    restore = ["restore", "web/a", "g1", "up", "draining", "passing", 30_000, 900, MINUTE_MS, "{}"]

    assert script.answers(restore, restore, known=900) == ["ok 901", "known 0"]
    assert script.entries()[0]["changes"] == [[901, "restore", "web/a", "up", "draining", "passing", "g1", "{}"]]
    assert script.entries()[0]["first"] == 0
    assert script.answers(["suspect", "web/a", "g1", 29_000]) == ["ok 902"]


def test_what_redis_has_as_it_was_before_gives_way_and_what_is_newer_stays(script: Script) -> None:
    def laid(field: str, generation: str, revision: int) -> list[Any]:
        return ["restore", field, generation, "up", "draining", "none", 30_000, revision, MINUTE_MS, "{}"]

    script.call(put("web/a"), put("web/b"))  # of revisions 1 and 2

    assert script.answers(laid("web/a", "g1", 1), laid("web/b", "g0", 1)) == ["known 0", "known 0"]
    assert script.answers(laid("web/a", "g1", 40), laid("web/b", "g2", 40), known=40) == ["ok 41", "ok 42"]
    assert script.answers(["suspect", "web/a", "g1", 20_000], ["suspect", "web/b", "g2", 20_000])[0].startswith("fresh ")
    assert script.answers(put("web/b", "g1"), put("web/b", "g2")) == ["ended 0", "ok 44"]


def test_a_call_without_changes_says_that_the_replica_lives_and_tells_nothing(script: Script) -> None:
    script.call(["beat"], replica="r2")

    assert sorted(script.call(replica="r1", known=50)[3]) == [b"r1", b"r2"]
    assert script.connection.exists(LOCATOR_CHANGES) == 0
    assert script.connection.hmget(LOCATOR_HEAD, "incarnation", "revision") == [b"first", None]


def test_words_and_texts_reach_the_replicas_without_a_change(script: Script) -> None:
    script.call(put())

    assert script.answers(["tell", "web/a", "", "reset"], ["hand", "r2", "text"], ["tell", "web/b", "", "reset"]) == [
        "ok 2", "ok 0", "unknown 0",
    ]  # fmt: skip
    entry = script.entries()[-1]
    assert entry["changes"][0][:3] == [2, "reset", "web/a"]
    assert entry["handed"] == [["r2", "text"]]
