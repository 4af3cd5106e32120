"""How many operations of the ledger were asked for in this process, by kind and by what their callers were told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from prometheus_client.core import CounterMetricFamily

from app.credits.operation import Applied, Refused, Reused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from app.credits.book import Settled

# What the operations of `app.credits.operation` are shown as. Steps that nobody asked for, such as the legs of a transfer
# over shards, are not shown.
SHOWN: Final = {
    "topup": "topup", "consume": "consume", "refund": "refund", "reserve": "reserve", "commit": "commit", "abort": "abort",
    "transfer": "transfer", "account": "control", "update": "control",
}  # fmt: skip
OPS: Final = (*dict.fromkeys(SHOWN.values()), "expire")
RESULTS: Final = ("applied", "replayed", "refused", "unavailable")


class Tally:
    """Every attempt counts once, when it is answered.

    applied      by operation of `app.credits.operation`: the hot path counts there itself, one addition an operation
    unavailable  the caller was told to try again: the operation may have been applied, and a retry is a replay then
    """

    def __init__(self, expired: Callable[[], int]) -> None:
        """`expired` returns how many reservations this process has ended because their time was over."""
        self._expired = expired
        self.applied: Final = dict.fromkeys((*SHOWN, "prepare_out", "prepare_in", "settle", "cancel", "note", "claim"), 0)
        self._others: Final = {(op, result): 0 for op in OPS for result in RESULTS}
        self.collisions = 0

    def take(self, op: str, outcome: Settled) -> None:
        """Count the answer to one operation."""
        if isinstance(outcome, Applied) and not outcome.replayed:
            self.applied[op] += 1
        elif isinstance(outcome, Applied | Refused) and outcome.replayed:
            self._add(op, "replayed")
        elif isinstance(outcome, Refused | Reused):
            self._add(op, "refused")
            self.collisions += isinstance(outcome, Reused) and op in SHOWN

    def take_word(self, op: str, result: str) -> None:
        """Count one operation by the word of RESULTS."""
        self._others[op, result] += 1

    def take_all(self, operations: Sequence[dict[str, Any]], outcomes: Iterable[Settled]) -> None:
        """Count the answers to several operations."""
        for fields, outcome in zip(operations, outcomes, strict=True):
            self.take(fields["op"], outcome)

    def lose(self, operations: Iterable[dict[str, Any]]) -> None:
        """Count operations whose callers were told that no answer can be given now."""
        for fields in operations:
            self._add(fields["op"], "unavailable")

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the families."""
        counts = dict(self._others)
        for op, shown in SHOWN.items():
            counts[shown, "applied"] += self.applied[op]
        counts["expire", "applied"] = self._expired()
        family = CounterMetricFamily(
            "credits_operations", "Operations by what their callers were told", labels=("op", "result")
        )
        for labels, count in counts.items():
            family.add_metric(labels, count)
        yield family
        yield CounterMetricFamily(
            "credits_idempotency_collisions", "Idempotency keys that came again with another request", self.collisions
        )

    def _add(self, op: str, result: str) -> None:
        shown = SHOWN.get(op)
        if shown is not None:
            self._others[shown, result] += 1
