"""Load on one or several servers: many clients, every answer judged and kept, everything unanswered asked again."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import aiohttp
from recovery_operations import FINAL, REMEMBERED, Answer, Operation, Plan

from tests.lag import Lag, disk_waited_s, starved_s
from tests.server import ROOT_KEY, ShieldxServer

OUTAGE_ANSWER_MAX_S: Final = 2.0  # callers hear of an outage within this time
SCHEDULING_MARGIN_S: Final = (
    0.25  # for two busy cores; what this process and the server waited for one, or for a disk, is added
)
HANG_S: Final = 60.0  # a request that takes longer is given up, and reported
RETRY_PAUSE_S: Final = 0.05
SETTLE_TIMEOUT_S: Final = 120.0  # after the last fault every retry must be answered within this time
DUPLICATE_SHARE: Final = 0.03  # of the operations are sent twice at once
ABANDON_SHARE: Final = 0.9  # of the unanswered transfers are left to the sweeper, where a test asks for it
READ_SHARE: Final = 0.04
VIOLATIONS_SHOWN: Final = 12

T = TypeVar("T")


class Load:
    """Clients that run from `start_clients` to `finish` against whichever of the servers are there."""

    def __init__(self, servers: Sequence[ShieldxServer], plan: Plan, seed: int, *, clients: int = 16) -> None:
        """`servers` may change while the load runs: what is dead or paused is not asked."""
        self.servers = servers
        self.plan = plan
        self.operations: list[Operation] = []
        self.abandoned: list[Operation] = []
        self.violations: list[str] = []
        self.statuses: Counter[int] = Counter()
        self.slowest_s = 0.0
        self.abandon_transfers = False
        self._random = random.Random(seed + 1)
        self._clients = clients
        self._pending: deque[Operation] = deque()
        self._versions: dict[str, int] = {}
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._lag = Lag()
        self._session: aiohttp.ClientSession | None = None

    def start_clients(self) -> None:
        """Let the clients run."""
        self._tasks += [asyncio.create_task(self._work()) for _ in range(self._clients)]

    async def connect(self) -> None:
        """Open the session, for requests one by one and for the clients."""
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {ROOT_KEY}"},
            timeout=aiohttp.ClientTimeout(total=HANG_S),
            connector=aiohttp.TCPConnector(limit=0),
        )
        self._tasks.append(asyncio.create_task(self._lag.run()))

    async def run_for(self, seconds: float) -> None:
        """Let the load run for a while, and longer until something has been answered in that time."""
        target = self.answered + 50
        loop = asyncio.get_running_loop()
        end_s, late_s = loop.time() + seconds, loop.time() + SETTLE_TIMEOUT_S
        while loop.time() < end_s or (self.answered < target and loop.time() < late_s):
            self.check_servers()
            await asyncio.sleep(0.01)
        assert self.answered >= target, f"only {self.answered - target + 50} answers\n{self.report()}"

    @property
    def answered(self) -> int:
        """How many answers settled something so far."""
        return sum(count for status, count in self.statuses.items() if status in FINAL)

    async def finish(self) -> None:
        """Stop asking for new things; retry everything unanswered with the same key until it is answered."""
        self._stop.set()
        lag, *workers = (self._tasks[0], *self._tasks[1:])
        await asyncio.gather(*workers)
        self._tasks = [lag]
        await self.settle(list(self._pending))
        self._pending.clear()

    async def settle(self, operations: Sequence[Operation]) -> None:
        """Retry operations with the same keys until each is answered."""
        deadline_s = asyncio.get_running_loop().time() + SETTLE_TIMEOUT_S

        async def until_answered(operation: Operation) -> None:
            while operation.settled is None:
                self.check_servers()
                late = asyncio.get_running_loop().time() > deadline_s
                assert not late, f"never answered: {operation}\n{self.report()}"
                await self.attempt(operation)
                if operation.settled is None:
                    await asyncio.sleep(RETRY_PAUSE_S)

        await self._spread(operations, until_answered)

    async def replay(self, operations: Sequence[Operation]) -> None:
        """Ask again what was answered: the answer must be the first one to the letter, and be marked as a replay."""

        async def again(operation: Operation) -> None:
            first = operation.settled
            assert first is not None
            if first.status not in REMEMBERED:
                return
            deadline_s = asyncio.get_running_loop().time() + SETTLE_TIMEOUT_S
            answer = await self._ask(operation)
            while answer is None or answer.status not in FINAL:
                assert asyncio.get_running_loop().time() < deadline_s, f"not answered again: {operation}"
                await asyncio.sleep(RETRY_PAUSE_S)
                answer = await self._ask(operation)
            if (answer.status, answer.body) != (first.status, first.body) or not answer.replayed:
                self.violations.append(
                    f"another answer to the same key: {operation}: first {first.status} {first.body[:600]!r}, "
                    f"then {answer.status} {answer.body[:600]!r}, replayed {answer.replayed}"
                )

        await self._spread(operations, again)

    async def read(self, path: str) -> dict[str, Any]:
        """Return the JSON of a GET that has to succeed."""
        answer = await self._request("GET", path, None)
        assert answer is not None, f"GET {path} was not answered"
        assert answer.status == 200, f"GET {path}: {answer}"
        return answer.fields

    async def close(self) -> None:
        """End the tasks and the connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def attempt(self, operation: Operation) -> None:
        """Ask once; keep the answer when it settles the operation."""
        answer = await self._ask(operation)
        if answer is None or answer.status not in FINAL:
            return
        if answer.status == 409 and answer.fields["code"] == "idempotency_key_in_flight":
            return
        operation.answers.append(answer)
        if len(operation.answers) == 1:
            self._judge(operation, answer)
            self.plan.note(operation)

    def summary(self) -> str:
        """What the clients saw, in one line; status 0 is no answer."""
        return f"statuses {dict(sorted(self.statuses.items()))}, slowest {self.slowest_s:.3f} s"

    def report(self) -> str:
        """What the clients saw, and what the servers wrote last."""
        logs = "\n".join(f"--- {server.name}\n{server.log_tail}" for server in self.servers)
        shown = "\n".join(self.violations[:VIOLATIONS_SHOWN])
        return f"{self.summary()}\n{shown}\n{logs}"

    def check_servers(self) -> None:
        """Fail when a server has ended that nobody told to."""
        for server in self.servers:
            gone = server.up and server.exit_code is not None
            assert not gone, f"{server.name} ended by itself with code {server.exit_code}\n{self.report()}"

    def check(self) -> None:
        """Fail when a client saw what no client may see."""
        self.check_servers()
        assert not self.violations, f"{len(self.violations)} violations\n{self.report()}"

    async def _work(self) -> None:
        while not self._stop.is_set():
            if self._random.random() < READ_SHARE and self._versions:
                await self._read(self._random.choice(list(self._versions)))
                continue
            if self._pending and self._random.random() < 0.5:
                operation = self._pending.popleft()
            else:
                operation = self.plan.next()
                self.operations.append(operation)
            if self._random.random() < DUPLICATE_SHARE:
                await asyncio.gather(self.attempt(operation), self.attempt(operation))
            else:
                await self.attempt(operation)
            if operation.settled is None:
                leave = self.abandon_transfers and operation.kind == "transfer" and self._random.random() < ABANDON_SHARE
                (self.abandoned if leave else self._pending).append(operation)
                await asyncio.sleep(RETRY_PAUSE_S)

    async def _ask(self, operation: Operation) -> Answer | None:
        operation.attempts += 1
        return await self._request("POST", operation.path, operation)

    async def _read(self, tenant: str) -> None:
        """Read an account: it must show at least what was acknowledged before."""
        version = self._versions[tenant]
        answer = await self._request("GET", f"/v1/accounts/{tenant}", None)
        if answer is None or answer.status == 503:
            await asyncio.sleep(RETRY_PAUSE_S)
        elif answer.status != 200 or answer.fields["version"] < version:
            self.violations.append(f"read of {tenant}: {answer.status} {answer.body!r}, version {version} was acknowledged")

    async def _request(self, method: str, path: str, operation: Operation | None) -> Answer | None:
        """Send a request to one of the servers that are there; None when there was no answer."""
        present = [server for server in self.servers if server.alive and not server.paused]
        if not present:
            await asyncio.sleep(RETRY_PAUSE_S)
            return None
        server = self._random.choice(present)
        pauses, process, up = server.pauses, server.process, server.up
        assert process is not None
        starved_before_s, disk_before_s = starved_s(process.pid), disk_waited_s()
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        assert self._session is not None
        headers = {} if operation is None else {"Idempotency-Key": operation.key}
        body = None if operation is None else operation.body
        answer, retry_after, fault = None, None, ""
        try:
            async with self._session.request(method, server.url + path, json=body, headers=headers) as response:
                content = await response.read()
                answer = Answer(response.status, content, response.headers.get("Idempotent-Replayed") == "true")
                retry_after = response.headers.get("Retry-After")
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            fault = repr(error)
        waited_s = loop.time() - started_s
        if up and server.up and server.process is process and server.pauses == pauses:
            late_s = self._lag.since(started_s) + starved_s(process.pid) - starved_before_s + disk_waited_s() - disk_before_s
            self._judge_delivery(operation, f"{method} {path}", answer, retry_after, fault, late_s, waited_s)
        self.statuses[answer.status if answer is not None else 0] += 1
        return answer

    def _judge_delivery(
        self,
        operation: Operation | None,
        call: str,
        answer: Answer | None,
        retry_after: str | None,
        fault: str,
        late_s: float,
        waited_s: float,
    ) -> None:
        """A server that is up answers in time, with 503 and Retry-After at worst; `late_s` is the machine's share."""
        what = operation or call
        self.slowest_s = max(self.slowest_s, waited_s)
        limit_s = OUTAGE_ANSWER_MAX_S + SCHEDULING_MARGIN_S + late_s
        if waited_s > limit_s:
            status = answer.status if answer else fault
            self.violations.append(f"answered after {waited_s:.3f} s (limit {limit_s:.3f}): {status} {what}")
        if answer is None:
            self.violations.append(f"no answer from a server that is up: {fault} {what}")
        elif answer.status == 503 and retry_after is None:
            self.violations.append(f"503 without Retry-After: {what}")
        elif answer.status not in FINAL and answer.status != 503:
            self.violations.append(f"status {answer.status} {answer.body[:600]!r}: {what}")

    def _judge(self, operation: Operation, answer: Answer) -> None:
        """The first answer must be one that the operation can have; remember which versions are acknowledged."""
        allowed = {
            "account": {201}, "topup": {200}, "batch": {200}, "reserve": {200, 402}, "consume": {200, 402},
            "transfer": {200, 402, 409}, "overdraw": {402}, "ghost": {404}, "unknown_reservation": {404},
            "unknown_transaction": {404}, "overcommit": {422, 409}, "refund": {200, 409, 422},
        }.get(operation.kind, {200, 409})  # fmt: skip
        if answer.status not in allowed:
            self.violations.append(f"status {answer.status} {answer.body[:600]!r}: {operation}")
        for result in [answer.fields, *answer.fields.get("results", ())]:
            if "version" in result and "tenant_id" in result:
                tenant = result["tenant_id"]
                self._versions[tenant] = max(result["version"], self._versions.get(tenant, 0))

    async def _spread(self, items: Sequence[T], work: Callable[[T], Awaitable[None]]) -> None:
        """Do the work for all items, as many at once as there are clients."""
        queue = deque(items)

        async def one() -> None:
            while queue:
                await work(queue.popleft())

        await asyncio.gather(*(one() for _ in range(self._clients)))
