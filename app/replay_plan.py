"""What a replay will do, known before the first call: rows, tenants, holds, top-ups and idempotency keys. Pure.

Everything here follows from the file, the run name and the number of tenants alone. That is why a replay that was
killed can be started again: it sends the same keys with the same requests, and what was done is not done twice.
"""

from __future__ import annotations

import csv
import hashlib
import re
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

COLUMNS: Final = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
TOKENS_MAX: Final = 10**9  # per request and kind; far above any context window, far below the ledger's 10^14 - 1
GENERATED_TOKENS_MAX: Final = 4_096  # credits held for an answer of unknown length: a usual limit for output tokens
TOP_UP_CREDITS: Final = 200_000  # per top-up: about 96 requests of the code trace, so top-ups stay near 1 % of calls
RUN_NAME_DIGITS: Final = 12  # hex digits of the file's SHA-256: 48 bits, two files of one user do not collide
RUN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
TENANTS_MAX: Final = 10_000  # accounts are created before the first request; beyond this that takes longer than the trace


class TraceError(Exception):
    """The file cannot be replayed. The message names file and line, and says what to do."""


class Request(NamedTuple):
    """One row: `number` counts from 1, `start_s` from the earliest row; tokens are credits."""

    number: int
    start_s: float
    context_tokens: int
    generated_tokens: int

    @property
    def used(self) -> int:
        """What the request costs in the end."""
        return self.context_tokens + self.generated_tokens

    @property
    def held(self) -> int:
        """What a gateway holds at the start, when it knows the context and a limit for the answer, not its length."""
        return self.context_tokens + max(GENERATED_TOKENS_MAX, self.generated_tokens)


class Step(NamedTuple):
    """A request with its tenant, and the top-up that comes before it: its counter within the tenant, and its amount."""

    request: Request
    tenant_id: str
    top_up: tuple[int, int] | None


class Plan(NamedTuple):
    """All steps in the order of the file."""

    run: str
    tenant_ids: list[str]
    steps: list[Step]

    @property
    def credits_used(self) -> int:
        """What the whole file costs."""
        return sum(step.request.used for step in self.steps)


def read_trace(path: Path) -> list[Request]:
    """Return the requests of a CSV file with the columns TIMESTAMP,ContextTokens,GeneratedTokens.

    Times are `YYYY-MM-DD hh:mm:ss[.fraction]`, with or without a zone but all alike; tokens are whole numbers.
    Raises TraceError.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _read_rows(path, csv.reader(file, strict=True))
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror}; check the path and its permissions") from None
    except UnicodeDecodeError:
        raise TraceError(f"{path} is not UTF-8 text; a trace is a CSV file with {','.join(COLUMNS)}") from None


def _read_rows(path: Path, rows: Iterable[list[str]]) -> list[Request]:
    found: list[tuple[datetime, int, int]] = []
    line = 0
    try:
        for line, row in enumerate(rows, 1):
            if line == 1:
                _check_header(path, row)
            elif row:
                found.append(_parse_row(path, line, row))
    except csv.Error as error:
        raise TraceError(f"{path}, line {line + 1}: {error}; correct or remove the line") from None
    if line == 0:
        raise TraceError(f"{path} is empty; its first line must be {','.join(COLUMNS)}")
    if not found:
        raise TraceError(f"{path} has no request after its first line")
    try:
        first = min(at for at, _, _ in found)
        starts = [(at - first).total_seconds() for at, _, _ in found]
    except TypeError:
        raise TraceError(f"{path} has times with and without a zone; write all of them in one form") from None
    return [
        Request(number, start_s, context, generated)
        for number, (start_s, (_, context, generated)) in enumerate(zip(starts, found, strict=True), 1)
    ]


def _check_header(path: Path, row: list[str]) -> None:
    if [name.strip() for name in row] != COLUMNS:
        raise TraceError(f"{path}, line 1: the columns must be {','.join(COLUMNS)}; add or correct the first line")


def _parse_row(path: Path, line: int, row: list[str]) -> tuple[datetime, int, int]:
    if len(row) != len(COLUMNS):
        raise TraceError(f"{path}, line {line}: {len(row)} columns where {len(COLUMNS)} belong; correct or remove the line")
    try:
        at = datetime.fromisoformat(row[0].strip())
    except ValueError:
        raise TraceError(
            f"{path}, line {line}: TIMESTAMP is no time such as 2023-11-16 18:17:03.979; correct or remove the line"
        ) from None
    return at, _tokens(path, line, COLUMNS[1], row[1]), _tokens(path, line, COLUMNS[2], row[2])


def _tokens(path: Path, line: int, name: str, text: str) -> int:
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit()) or len(digits) > len(str(TOKENS_MAX)) or int(digits) > TOKENS_MAX:
        raise TraceError(
            f"{path}, line {line}: {name} is no whole number from 0 to {TOKENS_MAX}; correct or remove the line"
        )
    return int(digits)


def name_run(path: Path, given: str | None) -> str:
    """Return the name that all keys of a run begin with: the given one, or the start of the file's SHA-256.

    Raises TraceError when the given name has other characters than letters, digits, dot, underscore and hyphen.
    """
    if given is None:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:RUN_NAME_DIGITS]
    if RUN_NAME.fullmatch(given) is None:
        raise TraceError("a run name has 1 to 64 letters, digits, '.', '_' or '-', and starts with a letter or digit")
    return given


def make_plan(run: str, requests: Sequence[Request], tenants: int) -> Plan:
    """Spread the requests over the tenants by row number, and place the top-ups.

    A tenant is topped up before the request whose hold it could not cover if every request ended before the
    tenant's next one began. Requests that overlap hold more; for those there is the refusal with status 402.
    Raises TraceError when `tenants` is not 1 to TENANTS_MAX.
    """
    if not 1 <= tenants <= TENANTS_MAX:
        raise TraceError(f"the number of tenants must be 1 to {TENANTS_MAX}")
    tenant_ids = [f"replay-{index:04d}" for index in range(tenants)]
    available = dict.fromkeys(tenant_ids, 0)
    counters = dict.fromkeys(tenant_ids, 0)
    steps = []
    for request in requests:
        tenant_id = tenant_ids[(request.number - 1) % tenants]
        top_up = None
        if available[tenant_id] < request.held:
            top_up = counters[tenant_id], max(TOP_UP_CREDITS, request.held)
            counters[tenant_id] += 1
            available[tenant_id] += top_up[1]
        available[tenant_id] -= request.used
        steps.append(Step(request, tenant_id, top_up))
    return Plan(run, tenant_ids, steps)


def account_key(run: str, tenant_id: str) -> str:
    """Return the idempotency key of creating a tenant's account."""
    return f"replay/{run}/{tenant_id}/account"


def top_up_key(run: str, tenant_id: str, counter: int) -> str:
    """Return the key of a tenant's planned top-up; `counter` counts from 0."""
    return f"replay/{run}/{tenant_id}/topup/{counter}"


def step_key(run: str, number: int, step: str, attempt: int) -> str:
    """Return the key of one step (reserve, commit, abort, topup) of a request.

    `attempt` counts from 0 and rises when the ledger has refused and remembers it, never for a mere retry.
    """
    return f"replay/{run}/{number}/{step}/{attempt}"
