"""What the generator sends: each workload makes the bytes of its next request, and follows chains."""

import itertools
from array import array
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

import msgspec
import numpy as np

from bench.wire import request_head

TENANT: Final = b"t%07d"  # fixed width, so that every request of a workload has one length
TENANTS_MAX: Final = 10_000_000  # tenants; what seven digits can name
PICKS_MIN: Final = 65_536  # random tenants drawn ahead of a run and then repeated
PICKS_MAX: Final = 1 << 20  # 4 MiB of 32-bit numbers
AMOUNTS: Final = 9  # amounts are 1 to 9: one digit, fixed width
RESERVATION_MARK: Final = "RESERVATION"
OK_MIN: Final = 200
OK_END: Final = 300


class Step(NamedTuple):
    """One request of a task: the index of its kind in `Workload.kinds`, and its bytes."""

    kind: int
    request: bytes


class Origin(msgspec.Struct, frozen=True):
    """Where requests go and what they carry; `run` starts every Idempotency-Key, so runs never collide."""

    host: str
    port: int
    token: str
    run: str


class Consume(msgspec.Struct, tag="consume", frozen=True):
    """Consume 1 to 9 credits of a random tenant out of `tenants`; `tenants=1` is one hot account."""

    tenants: int


class ReserveCommit(msgspec.Struct, tag="reserve_commit", frozen=True):
    """Reserve 1 to 9 credits of a random tenant, then commit that reservation: one task, two calls."""

    tenants: int


class ReadBalance(msgspec.Struct, tag="read_balance", frozen=True):
    """Read the account of a random tenant."""

    tenants: int


class Mixed(msgspec.Struct, tag="mixed", frozen=True):
    """Tasks in fixed shares: 60 % consume, 15 % reserve and commit, 20 % balance read, 5 % top-up."""

    tenants: int


class ConsumeBatch(msgspec.Struct, tag="consume_batch", frozen=True):
    """Batches of `size` consume operations, each of a random tenant."""

    tenants: int
    size: int


class CreateAccounts(msgspec.Struct, tag="create_accounts", frozen=True):
    """Create the accounts `first` to `first + count - 1`, one request each, then end."""

    first: int
    count: int


class TopUpBatch(msgspec.Struct, tag="top_up_batch", frozen=True):
    """Top up the accounts `first` to `first + count - 1` by `amount` each in batches of `size`, then end."""

    first: int
    count: int
    amount: int
    size: int


class LookUp(msgspec.Struct, tag="look_up", frozen=True):
    """Look an instance of one service up; `report` reports every call that was lent, as a second call of the task."""

    service: str
    strategy: str = "p2c"
    report: bool = False


class Register(msgspec.Struct, tag="register", frozen=True):
    """Register the instances 0 to `count - 1` of a service, one request each, then end."""

    service: str
    count: int


class Beat(msgspec.Struct, tag="beat", frozen=True):
    """Send heartbeats of the instances 0 to `count - 1` of a service, in turn, without end."""

    service: str
    count: int


class Alive(msgspec.Struct, tag="alive", frozen=True):
    """Ask whether the server lives: its cheapest call."""


LocatorSpec = LookUp | Register | Beat | Alive
WorkloadSpec = Consume | ReserveCommit | ReadBalance | Mixed | ConsumeBatch | CreateAccounts | TopUpBatch | LocatorSpec


class Outcome(NamedTuple):
    """Operations that one answer reports: one for a single call, many for a batch."""

    succeeded: int
    failed: int


class Workload(Protocol):
    """Endless or finite sequence of tasks; a task is one request, or a chain of them."""

    kinds: tuple[str, ...]
    body_kinds: frozenset[int]  # kinds of which `after` or `outcome` needs the body of the answer

    def first(self) -> Step | None:
        """Return the first request of the next task, or None when there are no more."""

    def after(self, kind: int, status: int, body: bytes) -> Step | None:
        """Return the request that follows this answer in its task, or None when the task is complete."""

    def outcome(self, kind: int, status: int, body: bytes) -> Outcome:
        """Count the operations in this answer."""


def random_tenants(tenants: int, seed: int) -> Iterator[int]:
    """Endless uniform choice of tenants, drawn ahead so that choosing costs no random number per request.

    faults  ValueError when `tenants` is below 1 or above what a name of fixed width can hold
    """
    if not 1 <= tenants <= TENANTS_MAX:
        raise ValueError(f"tenants must be 1 to {TENANTS_MAX}")
    size = min(max(PICKS_MIN, 4 * tenants), PICKS_MAX)  # Four draws per tenant reach nearly all of them.
    drawn = np.random.default_rng(seed).integers(0, tenants, size=size, dtype=np.uint32)
    return itertools.cycle(array("I", drawn.tobytes()))


def post_template(origin: Origin, path: str, body: bytes, sample: tuple[int, ...]) -> bytes:
    """Whole POST request as one template: the number that ends its Idempotency-Key, then the body's parts.

    body    template of fixed width; `sample` is any set of values for it, used to learn the length
    faults  ValueError as in `request_head`
    """
    head = request_head("POST", path, host=origin.host, token=origin.token, idempotent=True, body=True)
    return head % (origin.run.encode("ascii") + b"-%09d", len(body % sample)) + body


class Calls:
    """Tasks of one call each, from one template: number of the request, tenant, amount."""

    body_kinds: frozenset[int] = frozenset()

    def __init__(self, kind: str, template: bytes, tenants: Iterator[int]) -> None:
        """Take a template with three numbers: key, tenant, amount."""
        self.kinds: tuple[str, ...] = (kind,)
        self._template = template
        self._tenants = tenants
        self._sent = 0

    def first(self) -> Step | None:
        """Return the next call; never None."""
        self._sent = number = self._sent + 1
        return Step(0, self._template % (number, next(self._tenants), number % AMOUNTS + 1))

    def after(self, kind: int, status: int, body: bytes) -> Step | None:  # noqa: ARG002
        """Return None: a task is one call."""
        return None

    def outcome(self, kind: int, status: int, body: bytes) -> Outcome:  # noqa: ARG002
        """Count one operation."""
        return Outcome(1, 0) if OK_MIN <= status < OK_END else Outcome(0, 1)


def consume_calls(origin: Origin, tenants: int, seed: int) -> Calls:
    """Calls of POST /v1/credits/consume."""
    body = b'{"tenant_id":"' + TENANT + b'","amount":%d}'
    template = post_template(origin, "/v1/credits/consume", body, (0, 1))
    return Calls("consume", template, random_tenants(tenants, seed))


def top_up_calls(origin: Origin, tenants: int, seed: int) -> Calls:
    """Calls of POST /v1/credits/topup."""
    body = b'{"tenant_id":"' + TENANT + b'","amount":%d}'
    template = post_template(origin, "/v1/credits/topup", body, (0, 1))
    return Calls("topup", template, random_tenants(tenants, seed))


class BalanceReads(Calls):
    """Calls of GET /v1/accounts/{tenant_id}."""

    def __init__(self, origin: Origin, tenants: int, seed: int) -> None:
        """Prepare the template; it has one number, the tenant."""
        head = request_head("GET", "/v1/accounts/TENANT", host=origin.host, token=origin.token, idempotent=False, body=False)
        super().__init__("balance", head.replace(b"TENANT", TENANT), random_tenants(tenants, seed))

    def first(self) -> Step | None:
        """Return the next read; never None."""
        return Step(0, self._template % next(self._tenants))


class _Reserved(msgspec.Struct):
    reservation_id: str


class _BatchSummary(msgspec.Struct):
    succeeded: int
    failed: int


class ReservePairs(Calls):
    """Tasks of two calls: reserve, then commit of the reservation that the first answer names."""

    body_kinds = frozenset({0})

    def __init__(self, origin: Origin, tenants: int, seed: int) -> None:
        """Prepare the templates of both calls."""
        body = b'{"tenant_id":"' + TENANT + b'","amount":%d}'
        template = post_template(origin, "/v1/credits/reserve", body, (0, 1))
        super().__init__("reserve", template, random_tenants(tenants, seed))
        self.kinds = ("reserve", "commit")
        path = f"/v1/credits/reservations/{RESERVATION_MARK}/commit"
        # The commit's key differs from the reserve's by its prefix, so both can be numbered by one counter.
        commit = post_template(msgspec.structs.replace(origin, run=f"{origin.run}-c"), path, b"{}", ())
        self._commit_start, self._commit_rest = commit.split(RESERVATION_MARK.encode("ascii"))
        self._decoder = msgspec.json.Decoder(_Reserved)
        self._committed = 0

    def after(self, kind: int, status: int, body: bytes) -> Step | None:
        """Return the commit after a reserve that succeeded."""
        if kind != 0 or not OK_MIN <= status < OK_END:
            return None
        self._committed += 1
        reservation = self._decoder.decode(body).reservation_id.encode("ascii")
        return Step(1, self._commit_start + reservation + self._commit_rest % self._committed)


class MixedCalls:
    """Tasks of several workloads in fixed shares, in an order drawn ahead."""

    SHARES: Final = (0.60, 0.15, 0.20, 0.05)

    def __init__(self, origin: Origin, tenants: int, seed: int) -> None:
        """Build the parts; each has its own key prefix, so their numbers never meet."""
        part = [msgspec.structs.replace(origin, run=f"{origin.run}-{index}") for index in range(4)]
        self._parts: tuple[Calls, ...] = (
            consume_calls(part[0], tenants, seed),
            ReservePairs(part[1], tenants, seed + 1),
            BalanceReads(part[2], tenants, seed + 2),
            top_up_calls(part[3], tenants, seed + 3),
        )
        self.kinds = tuple(kind for one in self._parts for kind in one.kinds)
        starts = itertools.accumulate((len(one.kinds) for one in self._parts), initial=0)
        self._starts = tuple(starts)[: len(self._parts)]
        self._owner = tuple(i for i, one in enumerate(self._parts) for _ in one.kinds)
        numbered = zip(self._starts, self._parts, strict=True)
        self.body_kinds = frozenset(start + kind for start, one in numbered for kind in one.body_kinds)
        drawn = np.random.default_rng(seed).choice(len(self.SHARES), size=PICKS_MIN, p=self.SHARES)
        self._order = itertools.cycle(drawn.tolist())

    def first(self) -> Step | None:
        """Return the first request of a task of the part whose turn it is."""
        index = next(self._order)
        return self._renumbered(index, self._parts[index].first())

    def after(self, kind: int, status: int, body: bytes) -> Step | None:
        """Ask the part that sent the request."""
        index = self._owner[kind]
        return self._renumbered(index, self._parts[index].after(kind - self._starts[index], status, body))

    def outcome(self, kind: int, status: int, body: bytes) -> Outcome:
        """Count one operation."""
        return self._parts[self._owner[kind]].outcome(0, status, body)

    def _renumbered(self, index: int, step: Step | None) -> Step | None:
        return None if step is None else Step(step.kind + self._starts[index], step.request)


class Batches:
    """Calls of POST /v1/credits/batch with consume operations on random tenants."""

    kinds: tuple[str, ...] = ("batch",)
    body_kinds = frozenset({0})

    def __init__(self, origin: Origin, tenants: int, size: int, seed: int) -> None:
        """Prepare the template of a whole batch."""
        operation = b'{"op":"consume","tenant_id":"' + TENANT + b'","amount":%d}'
        body = b'{"operations":[' + b",".join([operation] * size) + b"]}"
        self._size = size
        self._amounts = [number % AMOUNTS + 1 for number in range(size)]
        self._template = post_template(origin, "/v1/credits/batch", body, tuple([1] * (2 * size)))
        self._tenants = random_tenants(tenants, seed)
        self._sent = 0
        self._decoder = msgspec.json.Decoder(_BatchSummary)

    def first(self) -> Step | None:
        """Return the next batch; never None."""
        self._sent += 1
        chosen = itertools.islice(self._tenants, self._size)
        values = itertools.chain.from_iterable(zip(chosen, self._amounts, strict=True))
        return Step(0, self._template % (self._sent, *values))

    def after(self, kind: int, status: int, body: bytes) -> Step | None:  # noqa: ARG002
        """Return None: a task is one call."""
        return None

    def outcome(self, kind: int, status: int, body: bytes) -> Outcome:  # noqa: ARG002
        """Count what the answer says; a refused batch is `size` failed operations."""
        if not OK_MIN <= status < OK_END:
            return Outcome(0, self._size)
        summary = self._decoder.decode(body)
        return Outcome(summary.succeeded, summary.failed)


class AccountCreations(Calls):
    """Calls of POST /v1/accounts, one per tenant of a range."""

    def __init__(self, origin: Origin, first: int, count: int) -> None:
        """Prepare the template; it has two numbers, key and tenant."""
        body = b'{"tenant_id":"' + TENANT + b'"}'
        template = post_template(origin, "/v1/accounts", body, (0,))
        super().__init__("create", template, iter(range(first, first + count)))

    def first(self) -> Step | None:
        """Return the next creation, or None after the last."""
        tenant = next(self._tenants, None)
        return None if tenant is None else Step(0, self._template % (tenant, tenant))


class TopUpBatches(Batches):
    """Calls of POST /v1/credits/batch that top up every tenant of a range once."""

    def __init__(self, origin: Origin, spec: TopUpBatch) -> None:
        """Remember the range; batches are formatted as they are sent."""
        super().__init__(origin, tenants=1, size=1, seed=0)
        self._origin = origin
        self._spec = spec
        self._next = spec.first

    def first(self) -> Step | None:
        """Return the next batch, or None when every tenant has its credits."""
        end = min(self._next + self._spec.size, self._spec.first + self._spec.count)
        if end <= self._next:
            return None
        operation = b'{"op":"topup","tenant_id":"' + TENANT + b'","amount":' + b"%d}" % self._spec.amount
        tenants = tuple(range(self._next, end))
        body = b'{"operations":[' + b",".join([operation] * len(tenants)) + b"]}"
        self._size = len(tenants)
        self._next = end
        return Step(0, post_template(self._origin, "/v1/credits/batch", body, tenants) % (end, *tenants))


def build(spec: WorkloadSpec, origin: Origin, seed: int) -> Workload:
    """Make the workload that `spec` describes."""
    match spec:
        case Consume(tenants):
            return consume_calls(origin, tenants, seed)
        case ReserveCommit(tenants):
            return ReservePairs(origin, tenants, seed)
        case ReadBalance(tenants):
            return BalanceReads(origin, tenants, seed)
        case Mixed(tenants):
            return MixedCalls(origin, tenants, seed)
        case ConsumeBatch(tenants, size):
            return Batches(origin, tenants, size, seed)
        case CreateAccounts(first, count):
            return AccountCreations(origin, first, count)
        case TopUpBatch():
            return TopUpBatches(origin, spec)
        case LookUp() | Register() | Beat() | Alive():
            from bench.locator_calls import build_locator  # noqa: PLC0415 - it builds on the classes of this file

            return build_locator(spec, origin)
