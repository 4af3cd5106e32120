"""The money operations of the load: what is asked, what was answered, and what to ask next."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from recovery_controls import SETTINGS

HOT_SHARE: Final = 0.3  # of the operations go to one tenant
HOLD_SHORT_SHARE: Final = 0.3  # of the holds expire after a second, while the load runs
PARTIAL_SHARE: Final = 0.5  # of the commits and refunds take only a part
AMOUNT_MAX: Final = {"consume": 40, "topup": 120, "reserve": 30}
UNKNOWN_ID: Final = "01900000-0000-7000-8000-{:012x}"
REMEMBERED: Final = frozenset({200, 201, 402, 404, 409})
FINAL: Final = REMEMBERED | {422}

# How often each kind of operation is asked, in parts of all.
WEIGHTS: Final = {
    "consume": 34, "topup": 12, "reserve": 14, "commit": 9, "abort": 5, "refund": 6, "batch": 6, "transfer": 8,
    "overdraw": 2, "ghost": 2, "unknown_reservation": 1, "unknown_transaction": 1, "overcommit": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """One answer to one request."""

    status: int
    body: bytes
    replayed: bool

    @property
    def fields(self) -> dict[str, Any]:
        """The JSON object of the body."""
        found: dict[str, Any] = orjson.loads(self.body)
        return found


@dataclass
class Operation:
    """One request with its Idempotency-Key, and every answer that settles it."""

    key: str
    kind: str
    path: str
    body: dict[str, Any]
    answers: list[Answer] = field(default_factory=list)
    attempts: int = 0

    @property
    def settled(self) -> Answer | None:
        """The first answer that settles the operation; None while it is unanswered."""
        return self.answers[0] if self.answers else None

    def __str__(self) -> str:
        """Say what was asked, for a report."""
        return f"{self.kind} {self.key} {self.path} {orjson.dumps(self.body).decode()[:400]} ({self.attempts} attempts)"


class Plan:
    """Chooses operations at random, and remembers the holds and spends that later ones refer to."""

    def __init__(self, seed: int, label: str, tenants: list[str], transfer_weight: int = WEIGHTS["transfer"]) -> None:
        """`label` makes the keys of this load unlike those of any other on the same ledger; tenants[0] is hot."""
        self._weights = WEIGHTS | {"transfer": transfer_weight}
        self._random = random.Random(seed)
        self.label = label
        self.tenants = tenants
        self._count = 0
        self._held: deque[tuple[str, int]] = deque(maxlen=2_000)
        self._spent: deque[tuple[str, int]] = deque(maxlen=2_000)

    def opening(self, balance: int) -> list[Operation]:
        """Return the operations that open the accounts, then those that fund them; every fourth tenant is poor."""
        accounts = [
            self._make("account", "/v1/accounts", {"tenant_id": tenant} | (SETTINGS if i % 3 == 0 else {}))
            for i, tenant in enumerate(self.tenants)
        ]
        funds = [
            self._make("topup", "/v1/credits/topup", {"tenant_id": tenant, "amount": balance if i % 4 != 3 else 40})
            for i, tenant in enumerate(self.tenants)
        ]
        return [*accounts, *funds]

    def next(self) -> Operation:
        """Return a new operation."""
        kind = self._random.choices(list(self._weights), list(self._weights.values()))[0]
        if kind == "batch":
            return self._batch()
        if kind in {"commit", "abort", "overcommit"} and not self._held:
            kind = "reserve"
        if kind == "refund" and not self._spent:
            kind = "consume"
        path, body = self._single(kind)
        return self._make(kind, path, body)

    def note(self, operation: Operation) -> None:
        """Learn from an answer what can be committed, aborted and refunded."""
        answer = operation.settled
        if answer is None or answer.status != 200:
            return
        results = answer.fields["results"] if operation.kind == "batch" else [answer.fields]
        for result in results:
            kind = result.get("type") or ("reserve" if "expires_at" in result else "")
            if kind == "reserve":
                self._held.append((result["reservation_id"], result["amount"]))
            elif kind in {"consume", "commit"}:
                self._spent.append((result["transaction_id"], result["amount"]))

    def _make(self, kind: str, path: str, body: dict[str, Any]) -> Operation:
        self._count += 1
        return Operation(f"{self.label}-{self._count}", kind, path, body)

    def _tenant(self) -> str:
        return self.tenants[0] if self._random.random() < HOT_SHARE else self._random.choice(self.tenants)

    def _hold(self) -> tuple[str, int]:
        """Choose a hold, mostly one that nobody has closed yet, sometimes one that is closed."""
        if self._random.random() < 0.85:
            return self._held.popleft()
        return self._random.choice(self._held)

    def _single(self, kind: str) -> tuple[str, dict[str, Any]]:
        """Return path and body of an operation that is no batch."""
        pick = self._random
        closing = {"commit": "commit", "overcommit": "commit", "abort": "abort"}.get(kind)
        if closing is not None:
            identifier, amount = self._hold()
            body: dict[str, Any] = {"amount": amount + 1} if kind == "overcommit" else {}
            if kind == "commit" and pick.random() < PARTIAL_SHARE:
                body = {"amount": pick.randint(1, amount)}
            return f"/v1/credits/reservations/{identifier}/{closing}", body
        match kind:
            case "consume" | "topup":
                return f"/v1/credits/{kind}", {"tenant_id": self._tenant(), "amount": pick.randint(1, AMOUNT_MAX[kind])}
            case "reserve":
                ttl_seconds = 1 if pick.random() < HOLD_SHORT_SHARE else 3_600
                body = {"tenant_id": self._tenant(), "amount": pick.randint(1, AMOUNT_MAX[kind]), "ttl_seconds": ttl_seconds}
                return "/v1/credits/reserve", body
            case "refund":
                identifier, amount = pick.choice(self._spent)
                part = {"amount": pick.randint(1, amount)} if pick.random() < PARTIAL_SHARE else {}
                return "/v1/credits/refund", {"transaction_id": identifier} | part
            case "transfer":
                return "/v1/transactions", {"legs": self._legs()}
        return self._refused(kind)

    def _refused(self, kind: str) -> tuple[str, dict[str, Any]]:
        """Return path and body of an operation that the ledger must refuse."""
        pick = self._random
        match kind:
            case "overdraw":
                return "/v1/credits/consume", {"tenant_id": self._tenant(), "amount": 10**12}
            case "ghost":
                return "/v1/credits/consume", {"tenant_id": f"nobody-{pick.randint(1, 10**9)}", "amount": 1}
            case "unknown_reservation":
                return f"/v1/credits/reservations/{UNKNOWN_ID.format(pick.getrandbits(40))}/abort", {}
        return "/v1/credits/refund", {"transaction_id": UNKNOWN_ID.format(pick.getrandbits(40))}

    def _legs(self) -> list[dict[str, Any]]:
        giver, *takers = self._random.sample(self.tenants, self._random.randint(2, 4))
        parts = [self._random.randint(1, 10) for _ in takers]
        given = {"tenant_id": giver, "amount": -sum(parts)}
        legs = [given, *({"tenant_id": t, "amount": n} for t, n in zip(takers, parts, strict=True))]
        self._random.shuffle(legs)
        return legs

    def _batch(self) -> Operation:
        operation = self._make("batch", "/v1/credits/batch", {})
        members = []
        for i in range(self._random.randint(2, 12)):
            kind = self._random.choices(
                ("consume", "topup", "reserve", "commit", "abort", "refund", "ghost"), (8, 3, 3, 2, 1, 1, 1)
            )[0]
            if (kind in {"commit", "abort"} and not self._held) or (kind == "refund" and not self._spent):
                kind = "consume"
            path, body = self._single(kind)
            if kind in {"commit", "abort"}:
                body["reservation_id"] = path.split("/")[4]
            if kind == "refund":
                body.pop("amount", None)
            if self._random.random() < 0.3:
                body["idempotency_key"] = f"{operation.key}-own-{i}"
            members.append({"op": "consume" if kind == "ghost" else kind} | body)
        operation.body["operations"] = members
        return operation
