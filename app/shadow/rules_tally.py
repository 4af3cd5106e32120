"""What was counted of one trial of a rule: a champion and a challenger, side by side, under one set of settings. Pure.

Each process counts by itself, from 0, and publishes its counts as they stand. The counts of a trial are the sum over
all processes that ever took part: publishing twice changes nothing, and nothing is counted twice or lost between two.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import msgspec

from app.shadow.rules_difference import Difference, Judged

if TYPE_CHECKING:
    from collections.abc import Iterable

FIELDS_MAX: Final = 200  # fields that a tally tells apart; differences in further ones are counted under OTHER
OTHER: Final = "/*"
BUCKETS_PER_DOUBLING: Final = 4  # so a percentile is told within 19 %


class Tally(msgspec.Struct, omit_defaults=True):
    """Counts of one trial.

    champion, challenger   names of the versions that are compared
    evaluated        answers that callers got
    champion_failed  of them, those without an answer
    sampled_out      evaluations that were not to be compared, by `shadow_rate`
    dropped          those that should have been compared, and were not, because too many waited
    compared         champion, champion again and challenger were evaluated
    kinds            how the challenger's answers differed
    both, challenger_only, noise_only   comparisons in which challenger and control differed from the champion's answer, only
                     the challenger did, only the control did
    fields           pointer to how often the challenger, and how often the control, differed there
    champion_us, challenger_us   histograms: bucket to count; the upper end of a bucket is 2 ** (bucket / 4) microseconds
    """

    champion: str = ""
    challenger: str | None = None
    evaluated: int = 0
    champion_failed: int = 0
    sampled_out: int = 0
    dropped: int = 0
    compared: int = 0
    both: int = 0
    challenger_only: int = 0
    noise_only: int = 0
    kinds: dict[str, int] = msgspec.field(default_factory=dict)
    fields: dict[str, tuple[int, int]] = msgspec.field(default_factory=dict)
    champion_us: dict[int, int] = msgspec.field(default_factory=dict)
    challenger_us: dict[int, int] = msgspec.field(default_factory=dict)

    def answered(self, judged: Judged) -> None:
        """Count an answer of the champion that a caller got."""
        self.evaluated += 1
        if judged.failure is not None:
            self.champion_failed += 1
        _count(self.champion_us, bucket_of_us(judged.us))

    def seen(self, challenger: Judged, difference: Difference, noise: Difference) -> None:
        """Count a comparison: how challenger, and champion evaluated again, differ from the champion's answer."""
        self.compared += 1
        _count(self.challenger_us, bucket_of_us(challenger.us))
        self.kinds[difference.kind] = self.kinds.get(difference.kind, 0) + 1
        differs, noisy = difference.kind != "same", noise.kind != "same"
        self.both += differs and noisy
        self.challenger_only += differs and not noisy
        self.noise_only += noisy and not differs
        for pointer in difference.fields:
            self._field(pointer, 1, 0)
        for pointer in noise.fields:
            self._field(pointer, 0, 1)

    def _field(self, pointer: str, raw: int, noise: int) -> None:
        if pointer not in self.fields and len(self.fields) >= FIELDS_MAX:
            pointer = OTHER
        before = self.fields.get(pointer, (0, 0))
        self.fields[pointer] = (before[0] + raw, before[1] + noise)

    def add(self, other: Tally) -> None:
        """Add the counts of another process."""
        self.champion, self.challenger = other.champion, other.challenger
        for name in ("evaluated", "champion_failed", "sampled_out", "dropped", "compared", "both", "challenger_only",
                     "noise_only"):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for kind, count in other.kinds.items():
            self.kinds[kind] = self.kinds.get(kind, 0) + count
        for mine, theirs in ((self.champion_us, other.champion_us), (self.challenger_us, other.challenger_us)):
            for bucket, count in theirs.items():
                mine[bucket] = mine.get(bucket, 0) + count
        for pointer, (raw, noise) in other.fields.items():
            self._field(pointer, raw, noise)


_decoder = msgspec.json.Decoder(Tally)


def tally_of(text: str | bytes) -> Tally:
    """Return the counts of a published text."""
    return _decoder.decode(text)


def total_of(tallies: Iterable[Tally]) -> Tally:
    """Return the sum of the counts of several processes."""
    total = Tally()
    for tally in tallies:
        total.add(tally)
    return total


def _count(histogram: dict[int, int], bucket: int) -> None:
    histogram[bucket] = histogram.get(bucket, 0) + 1


def bucket_of_us(us: int) -> int:
    """Return the bucket of a time."""
    return 0 if us <= 1 else math.ceil(math.log2(us) * BUCKETS_PER_DOUBLING - 1e-9)


def percentile_us(histogram: dict[int, int], share: float) -> float | None:
    """Return the time in microseconds that `share` of all do not exceed, rounded up to its bucket; None without any."""
    left = share * sum(histogram.values())
    for bucket in sorted(histogram):
        left -= histogram[bucket]
        if left <= 0:
            return round(2 ** (bucket / BUCKETS_PER_DOUBLING), 1)
    return None
