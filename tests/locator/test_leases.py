"""Leases: lent once, closed once, taken back when nobody reports."""

from __future__ import annotations

from app.locator.candidates import Candidates, Filter
from app.locator.leases import Lease, Leases, Reported, replica_of
from app.locator.load import Load
from tests.locator.fleet import instance


class Desk:
    """A table of leases, one instance, and what was taken back."""

    def __init__(self, **limits: int) -> None:
        self.taken_back: list[Lease] = []
        self.leases = Leases("r-1", self.taken_back.append, lease_s=30.0, **limits)
        self._load = Load(instance(1))
        self._candidates = Candidates(Filter(), lambda: 0.0)

    def lend(self, now_s: float = 0.0) -> str:
        return self.leases.lend(self._load, self._candidates, now_s, False)

    def close(self, lease_id: str) -> Reported:
        return self.leases.close(lease_id)[0]


def test_a_lease_is_closed_once_and_a_repeated_report_is_known_as_such() -> None:
    desk = Desk()
    lease_id = desk.lend()

    outcomes = [desk.close(lease_id) for _ in range(3)]

    assert outcomes == [Reported.COUNTED, Reported.REPEATED, Reported.REPEATED]
    assert desk.close(lease_id[:-1] + ("0" if lease_id[-1] != "0" else "1")) is Reported.UNKNOWN
    assert len(desk.leases) == 0


def test_a_lease_that_was_never_lent_is_unknown() -> None:
    desk = Desk()
    lease_id = desk.lend()

    strangers = [
        "",
        "r-1-",
        lease_id[:-1],
        lease_id + "0",
        lease_id.upper() + "\0",
        "r-2-10011f8a3c2",
        "r-1-0" + lease_id[4:],
    ]

    assert [desk.close(text) for text in strangers] == [Reported.UNKNOWN] * len(strangers)
    assert len(desk.leases) == 1


def test_no_id_is_given_twice_and_none_follows_from_another() -> None:
    desk = Desk()

    ids = [desk.lend() for _ in range(10_000)]

    assert len(set(ids)) == 10_000
    assert len({lease_id[-8:] for lease_id in ids}) > 9_900
    assert {replica_of(lease_id) for lease_id in ids} == {"r-1"}


def test_a_lease_is_taken_back_when_its_time_is_over_and_may_still_be_reported_once() -> None:
    desk = Desk()
    old, young = desk.lend(0.0), desk.lend(10.0)

    early = desk.leases.reap(29.9, 100)
    due = desk.leases.reap(30.0, 100)
    outcomes = [desk.close(old), desk.close(old), desk.close(young)]

    assert (early, due, len(desk.taken_back)) == (0, 1, 1)
    assert outcomes == [Reported.LATE, Reported.REPEATED, Reported.COUNTED]


def test_a_lease_that_nobody_reports_is_forgotten_a_minute_after_it_was_taken_back() -> None:
    desk = Desk()
    lost, late = desk.lend(0.0), desk.lend(0.0)

    desk.leases.reap(30.0, 100)
    in_time = desk.close(late)
    desk.leases.reap(90.0, 100)

    assert in_time is Reported.LATE
    assert (desk.close(lost), desk.close(late)) == (Reported.UNKNOWN, Reported.REPEATED)


def test_one_call_takes_back_no_more_than_its_limit() -> None:
    desk = Desk()
    for _ in range(10):
        desk.lend()

    assert [desk.leases.reap(60.0, 4) for _ in range(4)] == [4, 4, 2, 0]


def test_a_full_table_takes_the_oldest_back_and_stays_bounded() -> None:
    desk = Desk(open_max=640)

    ids = [desk.lend(float(number)) for number in range(10_000)]

    assert len(desk.leases) <= 640
    assert len(desk.taken_back) == 10_000 - len(desk.leases)
    assert desk.close(ids[-1]) is Reported.COUNTED


def test_closed_leases_are_remembered_in_bounds() -> None:
    desk = Desk(known_max=512)
    ids = [desk.lend() for _ in range(1_000)]
    for lease_id in ids:
        desk.close(lease_id)

    outcomes = [desk.close(lease_id) for lease_id in ids]

    assert outcomes[0] is Reported.UNKNOWN
    assert outcomes[-1] is Reported.REPEATED
    assert 0 < outcomes.count(Reported.REPEATED) <= 512


def test_text_that_is_no_lease_names_no_replica() -> None:
    assert [replica_of(text) for text in ("", "abc", "a-b-123")] == ["", "", "a-b"]
