"""Merkle proofs over HTTP from a log of millions of entries: how long one takes, and what it costs.

    python -m bench.proofs
    python -m bench.proofs --entries 1000000 --requests 2000

The ledger is a real one that a server made and that a server serves. Only its growth is not: the entries, real ones that
follow one another, are appended by the same statement as the server's, but without Redis and HTTP in front of it, which
takes minutes in place of hours. The server then rebuilds its Redis from them, signs them, and is asked. Every proof is
verified against the signed root.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import http.client
import random
import secrets
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

import asyncpg
import orjson
import uvloop

from app.audit.checkpoint import parse_checkpoint
from app.audit.entry import Event, RowSeal, entry_bytes, entry_hash
from app.audit.merkle import verify_consistency, verify_inclusion
from app.audit.note import parse_note
from app.audit.signing_keys import audit_key
from app.embedded import EmbeddedServers
from app.settings import read_settings
from bench.servers import HOST, ServerError, ServerProcess, free_port
from bench.usage import database_usage, tree_usage
from bench.workloads import Origin

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from app.audit.checkpoint import Checkpoint

ENTRIES: Final = 10_000_000
REQUESTS: Final = 1_000  # of each kind in each round
ROUNDS: Final = 3
TARGET_MS: Final = 5.0  # of one proof from 10,000,000 entries
SEED: Final = 3
TENANT: Final = "bench-proofs"
BALANCE: Final = 10**12  # credits: more than the entries consume
APPENDED: Final = 4_096  # entries of one statement
DESCRIPTION: Final = "chat completion of 1,024 tokens"  # entries as long as those of users, which have idempotency keys
SIGNED_SECONDS_MAX: Final = 600.0  # seconds for 10,000,000 entries to be rolled up and signed, several times over
_APPEND: Final = f"SELECT ledger_append({', '.join(f'${place}' for place in range(1, 19))})"


class Timing(NamedTuple):
    """What requests took: milliseconds at the median, at 95 and 99 %; CPU of a request in the server and in Postgres."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    server_ms: float
    postgres_ms: float


class Client:
    """One connection to the server, as an auditor's script would have it."""

    def __init__(self, origin: Origin) -> None:
        """Connect at the first request."""
        self._connection = http.client.HTTPConnection(origin.host, origin.port, timeout=60)
        self._headers = {"Authorization": f"Bearer {origin.token}", "Content-Type": "application/json"}

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        """Return the body of an answer. Raises ServerError for any but a success."""
        text = None if body is None else orjson.dumps(body)
        extra = {} if body is None else {"Idempotency-Key": secrets.token_hex(8)}
        self._connection.request(method, path, text, self._headers | extra)
        answer = self._connection.getresponse()
        data = answer.read()
        if answer.status >= 300:
            raise ServerError(f"{method} {path} was answered {answer.status}: {data[:300].decode(errors='replace')}")
        return data

    def signed_size(self) -> int:
        """Return how many entries of shard 0 are under a checkpoint; 0 when there is none."""
        return orjson.loads(self.ask("GET", "/v1/audit/shards"))["data"][0]["signed_size"] or 0

    def checkpoint(self) -> Checkpoint:
        """Return the newest signed tree of shard 0."""
        return parse_checkpoint(parse_note(self.ask("GET", "/v1/audit/checkpoint?shard=0").decode()).text)


async def serve(directory: Path, token: str) -> ServerProcess:
    """Start the server on what `directory` holds. Raises ServerError."""
    origin = Origin(HOST, free_port(), token, "proofs")
    arguments = ["-m", "app", "serve", "--host", HOST, "--port", str(origin.port), "--shadow-port", str(free_port())]
    return await ServerProcess.start(
        "shieldx", [*arguments, "--data-dir", str(directory / "data")],
        environment={"SHIELDX_ROOT_KEY": token}, origin=origin, log=directory / "log",
    )  # fmt: skip


async def lay(directory: Path, token: str, entries: int) -> None:
    """Grow the chain of shard 0 to so many entries, on the stores of a server that is stopped."""
    seal = RowSeal(audit_key(read_settings({}, {}), token))
    async with EmbeddedServers(directory / "data", on_exit=_ended) as endpoints:
        connection = await asyncpg.connect(endpoints.admin_database_url)
        try:
            row = await connection.fetchrow("SELECT epoch, head_seq, head_hash FROM ledger_shards WHERE shard = 0")
            account = await connection.fetchrow("SELECT balance, version FROM credit_accounts WHERE tenant_id = $1", TENANT)
            assert row is not None, "the server has made the shard"
            assert account is not None, "the account was made before"
            epoch, seq, head = row
            balance, version = account
            while seq + 1 < entries:
                count = min(APPENDED, entries - seq - 1)
                events = [_event(seq + 1 + i, balance - 1 - i, version + 1 + i) for i in range(count)]
                head = await _append(connection, seal, epoch, head, events)
                seq, balance, version = seq + count, balance - count, version + count
            await connection.execute("VACUUM (ANALYZE) audit_entries")
        finally:
            await connection.close()


def _ended(name: str, code: int) -> None:
    tell(f"{name} ended with {code}; the figures are not to be used")


def _event(seq: int, balance: int, version: int) -> Event:
    at_ms = int(time.time() * 1000)
    identifier = UUID(int=(at_ms << 80) | (7 << 76) | (2 << 62) | (secrets.randbits(62)))
    return Event(
        0, 1, seq, at_ms, "consume", TENANT, f"tenant:{TENANT}", "system:revenue", 1, balance, 0, version, str(identifier),
        description=DESCRIPTION,
    )  # fmt: skip


async def _append(
    connection: asyncpg.Connection[Any], seal: RowSeal, epoch: int, head: bytes, events: Sequence[Event]
) -> bytes:
    entries, hashes, prev = [], [], head
    for event in events:
        entry = entry_bytes(event, prev)
        prev = entry_hash(entry)
        entries.append(entry)
        hashes.append(prev)
    columns: list[list[Any]] = [
        [e.at_ms for e in events], [e.transaction_id for e in events], [e.tenant_id for e in events],
        [e.type for e in events], [e.amount for e in events], [e.balance for e in events], [e.reserved for e in events],
        [e.version for e in events], [len(entry) for entry in entries],
    ]  # fmt: skip
    runs = b"".join(entries), b"".join(hashes), b"".join(map(seal.sign, hashes))
    literals = (f"{{{','.join(map(str, column))}}}" for column in columns)
    await connection.execute(_APPEND, 0, epoch, events[0].seq - 1, head, seal.key_id, "", *literals, *runs)
    return prev


async def wait_signed(client: Client, entries: int) -> Checkpoint:
    """Return the first checkpoint that covers the entries. Raises ServerError when none does in time."""
    deadline_s = time.monotonic() + SIGNED_SECONDS_MAX
    while (size := client.signed_size()) < entries:
        if time.monotonic() > deadline_s:
            raise ServerError(f"after {SIGNED_SECONDS_MAX:.0f} s only {size} of {entries} entries are signed")
        await asyncio.sleep(1.0)
    return client.checkpoint()


def ask_inclusion(client: Client, signed: Checkpoint, number: random.Random) -> Callable[[], None]:
    """Ask for the proof of a random entry; returns what verifies it."""
    path = f"/v1/audit/proof/inclusion?shard=0&seq={number.randrange(signed.size)}&size={signed.size}"
    answer = orjson.loads(client.ask("GET", path))

    def verify() -> None:
        leaf, hashes = base64.b64decode(answer["leaf_hash"]), [base64.b64decode(h) for h in answer["hashes"]]
        verify_inclusion(answer["seq"], signed.size, leaf, hashes, signed.root)

    return verify


def ask_consistency(client: Client, signed: Checkpoint, number: random.Random) -> Callable[[], None]:
    """Ask for the proof that the tree extends one of a random size; returns what verifies it."""
    path = f"/v1/audit/proof/consistency?shard=0&from={number.randrange(1, signed.size)}&to={signed.size}"
    answer = orjson.loads(client.ask("GET", path))

    def verify() -> None:
        first, hashes = base64.b64decode(answer["from_root"]), [base64.b64decode(h) for h in answer["hashes"]]
        verify_consistency(answer["from"], signed.size, hashes, first, signed.root)

    return verify


def measure(
    ask: Callable[[Client, Checkpoint, random.Random], Callable[[], None]],
    client: Client, signed: Checkpoint, server: ServerProcess, requests: int, number: random.Random,
) -> Timing:  # fmt: skip
    """Ask for proofs one after the other, then verify them. Raises ProofInvalid."""
    took_ms, checks = [], []
    before = tree_usage(server.pid).cpu_seconds, database_usage()["postgres"].cpu_seconds
    for _ in range(requests):
        started_s = time.perf_counter()
        checks.append(ask(client, signed, number))
        took_ms.append((time.perf_counter() - started_s) * 1e3)
    after = tree_usage(server.pid).cpu_seconds, database_usage()["postgres"].cpu_seconds
    for check in checks:
        check()
    cuts = statistics.quantiles(took_ms, n=100)
    server_ms, postgres_ms = ((late - early) * 1e3 / requests for early, late in zip(before, after, strict=True))
    return Timing(cuts[49], cuts[94], cuts[98], server_ms, postgres_ms)


def tell(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def run(directory: Path, entries: int, requests: int, rounds: int) -> None:
    """Make the ledger if the directory has none, then measure. Raises ServerError and ProofInvalid."""
    kept = directory / "token"
    if not kept.exists():
        kept.write_text(secrets.token_urlsafe(32))
    token = kept.read_text()
    laid = directory / "laid"
    if not laid.exists():
        server = await serve(directory, token)
        try:
            client = Client(server.origin)
            client.ask("POST", "/v1/accounts", {"tenant_id": TENANT})
            client.ask("POST", "/v1/credits/topup", {"tenant_id": TENANT, "amount": BALANCE})
        finally:
            await server.stop()
        began_s = time.monotonic()
        await lay(directory, token, entries)
        laid.touch()
        tell(f"{entries:,} entries appended in {time.monotonic() - began_s:.0f} s")
    began_s = time.monotonic()
    server = await serve(directory, token)
    try:
        client = Client(server.origin)
        tell(f"ready after {time.monotonic() - began_s:.0f} s")
        signed = await wait_signed(client, entries)
        tell(f"signed, {signed.size:,} entries, after {time.monotonic() - began_s:.0f} s")
        number = random.Random(SEED)
        for turn in range(rounds):
            for name, ask in (("inclusion", ask_inclusion), ("consistency", ask_consistency)):
                one = measure(ask, client, signed, server, requests, number)
                verdict = "met" if one.p99_ms <= TARGET_MS else "missed"
                tell(f"round {turn + 1}  {name:<12} p50 {one.p50_ms:6.2f}  p95 {one.p95_ms:6.2f}  p99 {one.p99_ms:6.2f} ms"
                     f"   CPU {one.server_ms:.2f} ms server, {one.postgres_ms:.2f} ms Postgres"
                     f"   target p99 {TARGET_MS:g} ms: {verdict}")  # fmt: skip
    finally:
        await server.stop()


def main() -> int:
    """Run the command line; returns the exit status, which does not depend on the target."""
    parser = argparse.ArgumentParser(prog="python -m bench.proofs", description=__doc__.partition("\n")[0])
    parser.add_argument("--entries", type=int, default=ENTRIES, help=f"of the log ({ENTRIES:,})")
    parser.add_argument("--requests", type=int, default=REQUESTS, help=f"of each kind in a round ({REQUESTS:,})")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"({ROUNDS})")
    parser.add_argument("--directory", type=Path, help="keep the ledger there, and use it again")
    arguments = parser.parse_args()
    sizes = arguments.entries, arguments.requests, arguments.rounds
    try:
        if arguments.directory is not None:
            arguments.directory.mkdir(parents=True, exist_ok=True)
            uvloop.run(run(arguments.directory, *sizes))
        else:
            with tempfile.TemporaryDirectory(prefix="shieldx-bench-") as made:
                uvloop.run(run(Path(made), *sizes))
    except ServerError as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
