"""The ledger in plain Python: what one shard must answer to a sequence of operations, at the times that it names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

MAX: Final = 10**14 - 1

Answer = list[Any]


@dataclass
class Account:
    """One tenant."""

    balance: int = 0
    reserved: int = 0
    incoming: int = 0
    version: int = 1


@dataclass
class Hold:
    """One reservation, or one prepared leg."""

    tenant: str
    amount: int
    purpose: str
    expires_at: int
    status: str = "held"


@dataclass
class Model:
    """`at` is the time of the script call that is played; `events` are the results in seq order."""

    at: int = 0
    accounts: dict[str, Account] = field(default_factory=dict)
    holds: dict[str, Hold] = field(default_factory=dict)
    refunded: dict[str, int] = field(default_factory=dict)
    answers: dict[str, tuple[str, Answer]] = field(default_factory=dict)
    events: list[Answer] = field(default_factory=list)

    def play(self, op: dict[str, Any], made_id: Any) -> Answer:
        """Return what the script must answer. `made_id(seq)` gives the id of an event."""
        key = op.get("key")
        if key in self.answers:
            fingerprint, answer = self.answers[key]
            return ["replay", answer] if fingerprint == op["fp"] else ["reused"]
        self._id = made_id
        answer = getattr(self, op["op"])(op)
        code = answer[0]
        if key is None or code in {"amount_exceeds_reservation", "refund_exceeds_consumed", "unknown"}:
            return answer
        kept = {"ok": lambda: ["ok", answer[1]], "many": lambda: ["ok", answer[1][1], len(answer) - 1]}
        self.answers[key] = op["fp"], kept.get(code, lambda: answer)()
        return answer

    def emit(self, tenant: str, amount: int, extra: Any = None, *, save: bool = True) -> Answer:
        """Note an event and return its result."""
        account = self.accounts[tenant]
        account.version += save
        self.events.append(
            ["ok", len(self.events), self.at, account.balance, account.reserved, account.version, tenant, amount, extra]
        )
        return self.events[-1]

    def expire(self, identifier: str) -> None:
        """End a hold whose time has come."""
        hold = self.holds[identifier]
        hold.status = "expired"
        self.accounts[hold.tenant].reserved -= hold.amount
        self.emit(hold.tenant, hold.amount)

    def due(self, tenant: str | None = None) -> list[str]:
        """Return the holds whose time has come, in the order in which they expire."""
        ids = [
            (hold.expires_at, identifier) for identifier, hold in self.holds.items()
            if hold.status == "held" and hold.purpose == "spend" and hold.expires_at <= self.at and tenant in {None, hold.tenant}
        ]  # fmt: skip
        return [identifier for _, identifier in sorted(ids)]

    def covers(self, tenant: str, amount: int) -> bool:
        """Whether so much is available, once the holds that are due have gone."""
        account = self.accounts[tenant]
        if account.balance - account.reserved < amount:
            for identifier in self.due(tenant):
                self.expire(identifier)
        return account.balance - account.reserved >= amount

    def refusal(self, op: dict[str, Any], amount: int = 0, gain: int = 0) -> Answer | None:
        """Return why one tenant cannot give `amount` or get `gain`."""
        account = self.accounts.get(op["tenant"])
        if account is None:
            return ["no_account", "r"]
        if op.get("expect") not in {None, account.version}:
            return ["version_conflict", account.version, "r"]
        if amount and not self.covers(op["tenant"], amount):
            return ["insufficient_credits", account.balance - account.reserved, "r"]
        if account.balance + account.incoming + gain > MAX:
            return ["balance_limit_exceeded", "r"]
        return None

    def account(self, op: dict[str, Any]) -> Answer:
        if op["tenant"] in self.accounts:
            return ["account_exists", "r"]
        self.accounts[op["tenant"]] = Account()
        return self.emit(op["tenant"], 0, [self.at, {}], save=False)

    def topup(self, op: dict[str, Any]) -> Answer:
        if no := self.refusal(op, gain=op["amount"]):
            return no
        self.accounts[op["tenant"]].balance += op["amount"]
        return self.emit(op["tenant"], op["amount"])

    def consume(self, op: dict[str, Any]) -> Answer:
        if no := self.refusal(op, op["amount"]):
            return no
        self.accounts[op["tenant"]].balance -= op["amount"]
        return self.emit(op["tenant"], op["amount"])

    def hold(self, op: dict[str, Any], purpose: str, expires_at: int) -> Answer:
        """Keep a reservation under the id of the event that makes it."""
        self.holds[self._id(len(self.events))] = Hold(op["tenant"], op["amount"], purpose, expires_at)
        self.accounts[op["tenant"]].reserved += op["amount"] * (purpose != "transfer_in")
        self.accounts[op["tenant"]].incoming += op["amount"] * (purpose == "transfer_in")
        return self.emit(op["tenant"], op["amount"], expires_at if purpose == "spend" else None)

    def reserve(self, op: dict[str, Any]) -> Answer:
        return self.refusal(op, op["amount"]) or self.hold(op, "spend", self.at + op["ttl_ms"])

    def prepare_out(self, op: dict[str, Any]) -> Answer:
        return self.refusal(op, op["amount"]) or self.hold(op, "transfer_out", 0)

    def prepare_in(self, op: dict[str, Any]) -> Answer:
        return self.refusal(op, gain=op["amount"]) or self.hold(op, "transfer_in", 0)

    def closing(self, op: dict[str, Any], *, transfer: bool) -> Answer | None:
        """Return why a reservation cannot be ended now."""
        hold = self.holds.get(op["ref"])
        if hold is None:
            return ["unknown"]
        if (hold.purpose != "spend") != transfer:
            return ["no_reservation", "r"]
        if hold.status != "held":
            return [f"reservation_{hold.status}", "r"]
        if not transfer and hold.expires_at <= self.at:
            self.expire(op["ref"])
            return ["reservation_expired", "r"]
        version = self.accounts[hold.tenant].version
        return ["version_conflict", version, "r"] if op.get("expect") not in {None, version} else None

    def commit(self, op: dict[str, Any]) -> Answer:
        if no := self.closing(op, transfer=False):
            return no
        hold = self.holds[op["ref"]]
        amount = op.get("amount", hold.amount)
        if amount > hold.amount:
            return ["amount_exceeds_reservation", hold.amount, "r"]
        hold.status = "committed"
        self.accounts[hold.tenant].balance -= amount
        self.accounts[hold.tenant].reserved -= hold.amount
        return self.emit(hold.tenant, amount, hold.amount - amount)

    def abort(self, op: dict[str, Any]) -> Answer:
        if no := self.closing(op, transfer=False):
            return no
        hold = self.holds[op["ref"]]
        hold.status = "aborted"
        self.accounts[hold.tenant].reserved -= hold.amount
        return self.emit(hold.tenant, hold.amount)

    def settle(self, op: dict[str, Any], *, moved: int = 1, status: str = "committed") -> Answer:
        if no := self.closing(op, transfer=True):
            return no
        hold = self.holds[op["ref"]]
        hold.status, account, outgoing = status, self.accounts[hold.tenant], hold.purpose == "transfer_out"
        account.reserved -= hold.amount * outgoing
        account.incoming -= hold.amount * (not outgoing)
        account.balance += hold.amount * moved * (-1 if outgoing else 1)
        return self.emit(hold.tenant, hold.amount)

    def cancel(self, op: dict[str, Any]) -> Answer:
        return self.settle(op, moved=0, status="aborted")

    def sweep(self, op: dict[str, Any]) -> Answer:
        due = self.due()[: op["limit"]]
        for identifier in due:
            self.expire(identifier)
        return ["swept", len(due)]

    def refund(self, op: dict[str, Any]) -> Answer:
        rest = op["consumed"] - max(self.refunded.get(op["ref"], 0), op["refunded"])
        amount = op.get("amount", rest)
        if op["tenant"] not in self.accounts:
            return ["no_account", "r"]
        if no := self.refusal(op):
            return no
        if rest == 0:
            return ["already_refunded", "r"]
        if amount > rest:
            return ["refund_exceeds_consumed", rest, "r"]
        if no := self.refusal(op, gain=amount):
            return no
        self.refunded[op["ref"]] = op["consumed"] - rest + amount
        self.accounts[op["tenant"]].balance += amount
        return self.emit(op["tenant"], amount, self.refunded[op["ref"]])

    def transfer(self, op: dict[str, Any]) -> Answer:
        legs = [(leg["tenant_id"], leg["amount"]) for leg in op["legs"]]
        for i, (tenant, _) in enumerate(legs):
            if tenant not in self.accounts:
                return ["no_account", i, "r"]
        gives, gains = dict.fromkeys(self.accounts, 0), dict.fromkeys(self.accounts, 0)
        for i, (tenant, amount) in enumerate(legs):
            account = self.accounts[tenant]
            if amount < 0:
                if not self.covers(tenant, gives[tenant] - amount):
                    return ["insufficient_credits", max(0, account.balance - account.reserved - gives[tenant]), i, "r"]
                gives[tenant] -= amount
            else:
                gains[tenant] += amount
                if account.balance + account.incoming + gains[tenant] > MAX:
                    return ["balance_limit_exceeded", i, "r"]
        results = []
        for i, (tenant, amount) in enumerate(legs):
            self.accounts[tenant].balance += amount
            results.append(self.emit(tenant, abs(amount), [i + 1, len(legs), amount]))
        return ["many", *results]
