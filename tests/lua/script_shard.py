"""One ledger shard in a Redis without a server around it: the scripts are called as `app.credits.ledger` calls them."""

from __future__ import annotations

import copy
import itertools
import json
import secrets
from typing import Any, Final

import redis

from app.credits.operation import IdMask, transaction_id
from app.db.keys import shard_keys, shard_tag
from app.db.lua import load_script

GENERATION: Final = 3
MASK: Final = IdMask(0x1234, 0xABCDEF)
NUMBER: Final = 7

Answer = list[Any]


class Fault(Exception):
    """The whole script was refused; nothing was done."""


class ScriptShard:
    """An open, empty shard. Operations without a key get a new one, as the ledger gives them."""

    def __init__(self, connection: redis.Redis) -> None:
        """The database of `connection` is emptied."""
        self.redis: Any = connection
        self.generation = GENERATION
        self.durable = -1
        self.channel = ""
        self.seq = -1
        self.at = 0
        self.shared = False  # others give seqs as well
        self._numbers = itertools.count()
        self.redis.flushdb()
        self.restore("close")
        self.restore("open", GENERATION, -1, 0)

    def restore(self, verb: str, *words: str | int, epoch: int = 1) -> Answer:
        """Call ledger_restore and return its answer."""
        return list(self.redis.eval(load_script("ledger_restore").text, 3, *shard_keys(NUMBER), epoch, verb, *words))

    def run(self, *operations: dict[str, Any]) -> list[Answer]:
        """Call ledger_apply and return the answers of the operations. Raises Fault."""
        words = [self.generation, self.durable, self.channel, NUMBER, *MASK, *(json.dumps(one) for one in operations)]
        reply = self.redis.eval(load_script("ledger_apply").text, 3, *shard_keys(NUMBER), *words)
        if reply[0] != b"OK":
            raise Fault(*(part.decode() if isinstance(part, bytes) else part for part in reply))
        assert reply[1] == self.seq + 1 or self.shared
        self.seq, self.at = reply[2], reply[3]
        return [json.loads(part) for part in reply[4:]]

    def over(self, connection: redis.Redis) -> ScriptShard:
        """Return the same shard over another connection, as another replica uses it."""
        other = copy.copy(self)
        other.redis = connection
        other.shared = True
        return other

    def do(self, op: str, **fields: Any) -> Answer:
        """Run one operation under a new key, as request `r`."""
        return self.run(self.stamped(op, **fields))[0]

    def stamped(self, op: str, *, key: str | None = None, **fields: Any) -> dict[str, Any]:
        """Return an operation with key, fingerprint and request id."""
        key = key if key is not None else f"key-{next(self._numbers)}"
        body = {"op": op, **fields}
        fingerprint = json.dumps({name: value for name, value in body.items() if name != "rid"}, sort_keys=True)
        return {"key": key, "fp": f"{abs(hash(fingerprint)) % 10**22:022d}", "rid": "r", **body}

    def id_of(self, answer: Answer) -> str:
        """Return the transaction id of an applied operation."""
        return transaction_id(answer[2], NUMBER, self.generation, answer[1], MASK)

    def tenant(self, balance: int = 0) -> str:
        """Open an account with a balance and return its tenant."""
        tenant = f"t-{secrets.token_hex(4)}"
        assert self.do("account", tenant=tenant, settings={})[0] == "ok"
        if balance:
            assert self.do("topup", tenant=tenant, amount=balance)[0] == "ok"
        return tenant

    def hold(self, tenant: str, amount: int, ttl_ms: int = 300_000) -> str:
        """Reserve credits and return the reservation's id."""
        answer = self.do("reserve", tenant=tenant, amount=amount, ttl_ms=ttl_ms)
        assert answer[0] == "ok", answer
        return self.id_of(answer)

    def numbers(self, tenant: str) -> tuple[int, int, int]:
        """Return balance, reserved and version of an account, as Redis holds them."""
        values = self.redis.hmget(self.key("account", tenant), "balance", "reserved", "version")
        return tuple(int(value) for value in values)  # type: ignore[return-value]

    def key(self, kind: str, name: str) -> str:
        """Return the key of an account, a reservation, refunds, holds or an idempotency record."""
        return f"{shard_tag(NUMBER)}{kind}:{name}"

    def status(self, reservation: str) -> str:
        """Return the status of a reservation."""
        return str(self.redis.hget(self.key("reservation", reservation), "status").decode())

    def outbox(self) -> list[tuple[dict[str, Any], Answer]]:
        """Return the events that wait in seq order: operation and result. Checks that no seq is missing or double."""
        events = []
        for identifier, words in self.redis.eval("return redis.call('XRANGE', KEYS[1], '-', '+')", 1, shard_keys(NUMBER)[1]):
            events += [(json.loads(op), json.loads(result)) for op, result in zip(words[::2], words[1::2], strict=True)]
            assert identifier.decode() == f"{self.generation}-{events[-1][1][1]}"
        seqs = [result[1] for _, result in events]
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs))) if seqs else True
        return events

    def dump(self) -> dict[bytes, bytes]:
        """Return every key with its value, to see whether anything changed."""
        return {key: self.redis.dump(key) for key in self.redis.scan_iter()}
