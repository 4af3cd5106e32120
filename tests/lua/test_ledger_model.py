"""Random sequences of all operations against the model: same answers, same state, same events."""

from __future__ import annotations

import copy
import time
from typing import Any

import redis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from app.credits.operation import transaction_id
from app.db.keys import shard_keys
from tests.lua.ledger_model import MAX, Account, Model
from tests.lua.script_shard import GENERATION, MASK, NUMBER, ScriptShard

TTLS_MS = [0, 1, 2, 60_000]  # 0: due within the same script call
NOBODY = "01890000-0000-7000-8000-000000000000"

# Small numbers, and the edges: all that a tenant has or can still get, one more, and more than a half of it.
EDGES = ["all", "over", "room", "flood", "half", "half room"]
amounts = st.one_of(st.integers(1, 9), st.integers(1, 9), st.sampled_from(EDGES))
tenants = st.sampled_from(["a", "a", "b", "b", "c"])  # nobody has opened "c" yet
versions = st.one_of(st.none(), st.none(), st.none(), st.integers(1, 6))
keys = st.one_of(st.none(), st.none(), st.integers(0, 3))  # a few keys that are used again
picks = st.integers(0, 5)  # which of the latest reservations or spends

steps = st.one_of(
    st.tuples(st.just("account"), tenants),
    st.tuples(st.sampled_from(["topup", "consume", "prepare_out", "prepare_in"]), tenants, amounts, versions),
    st.tuples(st.just("reserve"), tenants, amounts, versions, st.sampled_from(TTLS_MS)),
    st.tuples(st.just("commit"), picks, st.one_of(st.none(), st.sampled_from(["all", "over", 1, 2])), versions),
    st.tuples(st.sampled_from(["abort", "settle", "cancel"]), picks),
    st.tuples(st.just("refund"), st.integers(0, 1), st.sampled_from([None, "all", "over", 1, 2]), st.integers(0, 2)),
    st.tuples(st.just("transfer"), st.lists(st.tuples(tenants, amounts, st.sampled_from([1, -1])), min_size=2, max_size=4)),
    st.tuples(st.just("sweep"), st.integers(1, 3)),
    st.tuples(st.just("wait")),
)


class Play:
    """One run of the script and the model, side by side."""

    def __init__(self, shard: ScriptShard) -> None:
        """Begin with two tenants that have something to spend."""
        self.shard = shard
        self.model = Model()
        self.holds: list[str] = []
        self.spends: list[tuple[str, str, int]] = []
        for tenant, amount in (("a", 50), ("b", MAX - 40)):
            self.run([({"op": "account", "tenant": tenant, "settings": {}}, None)])
            self.run([({"op": "topup", "tenant": tenant, "amount": amount}, None)])

    def amount(self, tenant: str, wanted: int | str) -> int:
        """Return the number that an edge stands for."""
        account = self.model.accounts.get(tenant, Account())
        available, room = account.balance - account.reserved, MAX - account.balance - account.incoming
        edges = {"all": available, "over": available + 1, "room": room, "flood": room + 1}
        edges |= {"half": available // 2 + 1, "half room": room // 2 + 1}
        return max(1, min(MAX, edges[wanted] if isinstance(wanted, str) else wanted))

    def operation(self, step: tuple[Any, ...]) -> dict[str, Any]:
        """Return the operation that a step stands for, given what has happened so far."""
        verb, *rest = step
        match verb:
            case "account":
                fields: dict[str, Any] = {"tenant": rest[0], "settings": {}}
            case "topup" | "consume" | "prepare_out" | "prepare_in":
                fields = {"tenant": rest[0], "amount": self.amount(rest[0], rest[1])}
                if verb in {"topup", "consume"} and rest[2] is not None:
                    fields["expect"] = rest[2]
            case "reserve":
                fields = {"tenant": rest[0], "amount": self.amount(*rest[:2]), "ttl_ms": rest[3]} | (
                    {} if rest[2] is None else {"expect": rest[2]}
                )
            case "commit":
                identifier = self.picked(rest[0])
                held = self.model.holds[identifier].amount if identifier in self.model.holds else 1
                fields = {"ref": identifier} | self.part(held, rest[1]) | ({} if rest[2] is None else {"expect": rest[2]})
            case "abort" | "settle" | "cancel":
                identifier = self.picked(rest[0])
                hold = self.model.holds.get(identifier)
                fields = {"ref": identifier, "purpose": hold.purpose if hold is not None else "transfer_out"}
            case "refund":
                identifier, tenant, consumed = (
                    self.spends[-1 - rest[0] % len(self.spends)] if self.spends else (NOBODY, "c", 5)
                )
                redis_knows = self.model.refunded.get(identifier, 0)
                postgres_knows = max(0, min(consumed, redis_knows + rest[2] - 1))
                fields = {"ref": identifier, "tenant": tenant, "consumed": consumed, "refunded": postgres_knows}
                fields |= {"generation": GENERATION} | self.part(consumed - max(redis_knows, postgres_knows), rest[1])
            case "transfer":
                fields = {
                    "legs": [
                        {"tenant_id": tenant, "amount": self.amount(tenant, amount) * sign}
                        for tenant, amount, sign in rest[0]
                    ]
                }
            case _:
                fields = {"limit": rest[0]}
        return {"op": verb, **fields}

    @staticmethod
    def part(whole: int, wanted: int | str | None) -> dict[str, int]:
        """Return the field `amount` of a commit or refund: absent, all, one more, or a number."""
        if wanted is None:
            return {}
        return {"amount": max(1, {"all": whole, "over": whole + 1}.get(str(wanted), wanted))}  # type: ignore[call-overload]

    def picked(self, number: int) -> str:
        """Return one of the latest reservations, or one that never was."""
        return self.holds[-1 - number % len(self.holds)] if self.holds and number < 5 else NOBODY

    def run(self, batch: list[tuple[dict[str, Any], int | None]]) -> None:
        """Send operations in one script call, play them in the model, and compare the answers."""
        stamped = [
            op if op["op"] == "sweep" else self.shard.stamped(**op, key=None if key is None else f"again-{key}")
            for op, key in batch
        ]
        answers = self.shard.run(*stamped)
        self.model.at = at = self.shard.at
        for op, answer in zip(stamped, answers, strict=True):
            assert answer == self.model.play(op, lambda seq: transaction_id(at, NUMBER, GENERATION, seq, MASK)), op
            if answer[0] == "ok":
                identifier = transaction_id(at, NUMBER, GENERATION, answer[1], MASK)
                if identifier in self.model.holds:
                    self.holds.append(identifier)
                elif op["op"] in {"consume", "commit"}:
                    self.spends.append((identifier, answer[6], answer[7]))

    def compare(self) -> None:
        """The state in Redis is that of the model, and the outbox holds every event of it."""
        read = self.shard.redis
        for tenant, account in self.model.accounts.items():
            fields = read.hgetall(self.shard.key("account", tenant))
            known = {name: int(fields.get(name.encode(), 0)) for name in ("balance", "reserved", "incoming", "version")}
            assert known == vars(account)
            assert 0 <= account.reserved <= account.balance <= MAX - account.incoming
        for identifier, hold in self.model.holds.items():
            assert self.shard.status(identifier) == hold.status
        open_spends = {
            name.encode() for name, hold in self.model.holds.items() if (hold.status, hold.purpose) == ("held", "spend")
        }
        assert set(read.zrange(shard_keys(NUMBER)[2], 0, -1)) == open_spends
        assert [result for _, result in self.shard.outbox()] == self.model.events


# A failure is shown as it was found: to shrink it takes minutes, because time goes on meanwhile.
@settings(
    max_examples=30,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.large_base_example,
    ],
)
@given(st.lists(st.lists(st.tuples(steps, keys), min_size=1, max_size=4), min_size=20, max_size=40))
def test_any_sequence_of_operations_is_answered_like_the_model(
    connection: redis.Redis, batches: list[list[tuple[tuple[Any, ...], int | None]]]
) -> None:
    play = Play(ScriptShard(connection))

    for batch in batches:
        if any(step == ("wait",) for step, _ in batch):
            time.sleep(0.002)
        operations = [(play.operation(step), key) for step, key in batch if step != ("wait",)]
        play.run(copy.deepcopy(operations))

    play.compare()
