"""What must hold after every fault, worked out from the bytes of the chain by rules of our own.

The fold below shares no code with `app.audit.fold`: an error in one of them does not hide in the other.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import asyncpg
import orjson
from recovery_operations import REMEMBERED, Operation

from app.audit.entry import ENTRY_PREFIX, entry_hash, genesis_hash
from app.credits.request import Fingerprints

BALANCE_MAX: Final = 10**14 - 1
FAULTS_SHOWN: Final = 12

# Effect of each type on balance, reserved and incoming, in parts of the amount.
EFFECTS: Final = {
    "account": (0, 0, 0), "update": (0, 0, 0), "topup": (1, 0, 0), "consume": (-1, 0, 0), "refund": (1, 0, 0),
    "reserve": (0, 1, 0), "commit": (-1, -1, 0), "abort": (0, -1, 0), "expire": (0, -1, 0),
    "prepare_out": (0, 1, 0), "prepare_in": (0, 0, 1), "settle_out": (-1, -1, 0), "settle_in": (1, 0, -1),
    "cancel_out": (0, -1, 0), "cancel_in": (0, 0, -1),
}  # fmt: skip
OPENS: Final = frozenset({"reserve", "prepare_out", "prepare_in"})
CLOSES: Final = frozenset({"commit", "abort", "expire", "settle_out", "settle_in", "cancel_out", "cancel_in"})


class Account(NamedTuple):
    """What a tenant has."""

    balance: int = 0
    reserved: int = 0
    incoming: int = 0
    version: int = 0


@dataclass
class LedgerState:
    """The chain of every shard, and what it adds up to."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    accounts: dict[str, Account] = field(default_factory=dict)
    shard_of: dict[str, int] = field(default_factory=dict)
    holds: dict[str, dict[str, Any]] = field(default_factory=dict)
    heads: dict[int, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def fold(rows: Iterable[asyncpg.Record], origin: str, shard_count: int) -> LedgerState:
    """Return what rows (shard, seq, entry, hash, prev_hash), in order of shard and seq, add up to."""
    state = LedgerState(heads=dict.fromkeys(range(shard_count), -1))
    hashes = {shard: genesis_hash(f"{origin}/s{shard:02d}") for shard in range(shard_count)}
    for shard, seq, entry, digest, prev_hash in rows:
        record = orjson.loads(entry[len(ENTRY_PREFIX) :])
        if seq != state.heads[shard] + 1 or (record["seq"], record["shard"]) != (seq, shard):
            state.faults.append(f"shard {shard}: seq {seq} follows {state.heads[shard]}")
        if prev_hash != hashes[shard] or record["prev_hash"] != prev_hash.hex() or entry_hash(entry) != digest:
            state.faults.append(f"shard {shard} seq {seq}: the link is broken")
        state.heads[shard], hashes[shard] = seq, digest
        state.entries.append(record)
        if record["tenant_id"]:
            _apply(state, record)
    return state


def _apply(state: LedgerState, record: dict[str, Any]) -> None:
    kind, tenant, amount = record["type"], record["tenant_id"], record["amount"]
    before = state.accounts.get(tenant, Account())
    if kind == "transfer":
        gain = 1 if record["credit"] == f"tenant:{tenant}" else -1
        effect = (gain, 0, 0)
    else:
        effect = EFFECTS[kind]
    after = Account(
        before.balance + effect[0] * amount,
        before.reserved + effect[1] * amount - (record["details"]["released"] if kind == "commit" else 0),
        before.incoming + effect[2] * amount,
        before.version + 1,
    )
    where = f"shard {record['shard']} seq {record['seq']} {kind} of {tenant}"
    if (record["balance"], record["reserved"], record["version"]) != (after.balance, after.reserved, after.version):
        state.faults.append(f"{where}: the entry says {record}, the fold {after}")
    if not 0 <= after.reserved <= after.balance <= BALANCE_MAX or after.incoming < 0:
        state.faults.append(f"{where}: impossible state {after}")
    if (tenant in state.accounts) == (kind == "account"):
        state.faults.append(f"{where}: the account is {'opened twice' if kind == 'account' else 'not open'}")
    state.accounts[tenant] = after
    if state.shard_of.setdefault(tenant, record["shard"]) != record["shard"]:
        state.faults.append(f"{where}: the tenant belongs to shard {state.shard_of[tenant]}")
    if kind in OPENS:
        state.holds[record["transaction_id"]] = record
    elif kind in CLOSES:
        hold = state.holds.pop(record["reference"], None)
        if hold is None:
            state.faults.append(f"{where}: reservation {record['reference']} is not open")


class Unit(NamedTuple):
    """One movement that a client asked for: its key, its kind, its status and the fields of its answer."""

    key: str
    kind: str
    status: int
    fields: dict[str, Any]


def units_of(operation: Operation) -> Iterator[Unit]:
    """Take a batch apart; anything else is one unit."""
    answer = operation.settled
    assert answer is not None
    if operation.kind != "batch":
        yield Unit(operation.key, operation.kind, answer.status, answer.fields)
        return
    if answer.status != 200:
        return
    results = answer.fields["results"]
    members = operation.body["operations"]
    assert len(results) == len(members), f"{len(results)} results for {operation}"
    for i, (member, result) in enumerate(zip(members, results, strict=True)):
        yield Unit(member.get("idempotency_key", f"{operation.key}/{i}"), member["op"], result["status"], result)


def _leg(record: dict[str, Any]) -> dict[str, Any]:
    """Return an entry as an answer shows it: one leg, its amount signed."""
    sign = 1 if record["debit"] == "system:clearing" else -1
    names = ("tenant_id", "balance", "shard", "seq")
    return {"amount": sign * record["amount"]} | {name: record[name] for name in names}


class Proof:
    """Holds the answers of all clients against the chain, and collects what does not agree."""

    def __init__(self, state: LedgerState, fingerprints: Fingerprints) -> None:
        """`fingerprints` gives the hashes under which the ledger knows the clients' keys."""
        self._state = state
        self._fingerprints = fingerprints
        self.faults = list(state.faults)
        self._by_key: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._by_transaction: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._by_reference: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for record in state.entries:
            if record["idempotency"] is not None:
                self._by_key[record["idempotency"]].append(record)
            self._by_transaction[record["transaction_id"]].append(record)
            if record["reference"] is not None:
                self._by_reference[record["reference"]].append(record)

    def check(self, operations: Iterable[Operation], transfer_legs: dict[str, int]) -> None:
        """Every answered operation is in the chain exactly once, every refused one not at all, and nothing else is.

        transfer_legs  transactions over several shards that the coordinator knows, with their number of legs
        """
        asked: Counter[str] = Counter()
        for operation in operations:
            for other in operation.answers[1:]:
                if other.status in REMEMBERED and (other.status, other.body) != (
                    operation.answers[0].status,
                    operation.answers[0].body,
                ):
                    self.faults.append(f"two answers to one key: {operation}: {operation.answers[0]}, {other}")
            for unit in units_of(operation):
                asked[self._fingerprints.key(unit.key)] += 1
                self._check_unit(unit, transfer_legs)
        for transfer_id, legs in transfer_legs.items():
            asked.update(self._fingerprints.key(f"transfer {transfer_id} {leg}") for leg in range(legs))
            self._check_legs(transfer_id, legs)
        for key, records in self._by_key.items():
            if key not in asked and records[0]["type"] not in {"settle_in", "settle_out", "cancel_in", "cancel_out"}:
                self.faults.append(f"nobody asked for {records[0]}")
            if len({record["transaction_id"] for record in records}) != 1:
                self.faults.append(f"one key was applied {len(records)} times: {records}")

    def _check_unit(self, unit: Unit, transfer_legs: dict[str, int]) -> None:
        records = self._by_key.get(self._fingerprints.key(unit.key), [])
        if unit.status not in {200, 201}:
            if records:
                self.faults.append(f"refused with {unit.status}, yet applied: {unit} {records}")
            return
        if unit.kind == "transfer":
            if unit.fields["transaction_id"] in transfer_legs:
                self._check_legs_answered(unit)
            else:
                self._check_transfer(unit, records)
            return
        if len(records) != 1:
            self.faults.append(f"acknowledged, and {len(records)} times in the chain: {unit}")
            return
        record, fields = records[0], unit.fields
        wanted = "consume" if unit.kind in {"overdraw", "ghost"} else unit.kind
        names = ["tenant_id", "balance", "reserved", "version"]
        if unit.kind != "account":
            names += ["transaction_id", "amount", "seq", "shard"]
            if len(self._by_transaction[fields["transaction_id"]]) != 1:
                self.faults.append(
                    f"the transaction id stands {len(self._by_transaction[fields['transaction_id']])} times: {unit}"
                )
        wrong = [name for name in names if fields[name] != record[name]]
        if wrong or record["type"] != wanted:
            self.faults.append(f"the answer is not what the chain says in {wrong}: {unit} {record}")

    def _check_transfer(self, unit: Unit, records: list[dict[str, Any]]) -> None:
        legs = unit.fields["legs"]
        if [_leg(record) for record in records] != legs or {r["transaction_id"] for r in records} != {
            unit.fields["transaction_id"]
        }:
            self.faults.append(f"the legs are not those of the chain: {unit} {records}")
        if len(self._by_transaction[unit.fields["transaction_id"]]) != len(legs):
            self.faults.append(f"the transaction id stands elsewhere too: {unit}")

    def _check_legs(self, transfer_id: str, legs: int) -> None:
        """All legs have moved or none, and none is held any more."""
        prepared = [r for r in self._by_reference[transfer_id] if r["type"] in {"prepare_in", "prepare_out"}]
        ends = Counter(end["type"].partition("_")[0] for p in prepared for end in self._by_reference[p["transaction_id"]])
        if sum(ends.values()) != len(prepared):
            self.faults.append(f"transfer {transfer_id}: {len(prepared)} legs were held, {dict(ends)} ended")
        if ends["settle"] not in {0, legs} or (ends["settle"] and ends["cancel"]):
            self.faults.append(f"transfer {transfer_id} of {legs} legs: {dict(ends)}")

    def _check_legs_answered(self, unit: Unit) -> None:
        """An acknowledged transaction over several shards has settled every leg, as its answer says."""
        ids = [p["transaction_id"] for p in self._by_reference[unit.fields["transaction_id"]]]
        settled = [end for i in ids for end in self._by_reference[i] if end["type"].startswith("settle")]
        by_place = {(leg["shard"], leg["seq"]): leg for leg in map(_leg, settled)}
        answered = {(leg["shard"], leg["seq"]): leg for leg in unit.fields["legs"]}
        if by_place != answered:
            self.faults.append(f"the legs are not those of the chain: {unit} {settled}")

    def report(self) -> str:
        """The first faults, for a person."""
        return "\n".join(fault[:1500] for fault in self.faults[:FAULTS_SHOWN])
