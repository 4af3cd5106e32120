"""What the generator sends to the locator: lookups with and without reports, registrations, heartbeats, pulses."""

import itertools
from typing import Final

import msgspec

from bench.wire import request_head
from bench.workloads import OK_END, OK_MIN, Alive, Beat, Calls, LocatorSpec, LookUp, Origin, Register, Step, Workload

INSTANCE: Final = b"i%06d"  # fixed width, so that every request of a workload has one length
TAGS: Final = '["v1","http","blue"]'
METADATA: Final = '{"version":"2026.11.3","team":"payments","rack":"r17"}'


class _Lent(msgspec.Struct):
    lease_id: str


class LookUps(Calls):
    """Calls of GET /v1/services/{service}/lookup, each followed by its report if that is asked for."""

    def __init__(self, origin: Origin, spec: LookUp) -> None:
        """Prepare the one request of all lookups."""
        path = f"/v1/services/{spec.service}/lookup"
        # p2c is the default: without a query it is the plainest call there is.
        query = "" if spec.strategy == "p2c" else f"?strategy={spec.strategy}"
        query += "&key=some-user" if spec.strategy == "consistent_hash" else ""
        head = request_head("GET", path + query, host=origin.host, token=origin.token, idempotent=False, body=False)
        super().__init__("lookup", head, iter(()))
        self._lookup = Step(0, head)
        self._report_head = request_head(
            "POST", f"/v1/services/{spec.service}/report", host=origin.host, token=origin.token, idempotent=False, body=True
        )
        if spec.report:
            self.kinds = ("lookup", "report")
            self.body_kinds = frozenset({0})
        self._decoder = msgspec.json.Decoder(_Lent)

    def first(self) -> Step | None:
        """Return the lookup; never None."""
        return self._lookup

    def after(self, kind: int, status: int, body: bytes) -> Step | None:
        """Return the report of a lease that was lent."""
        if kind != 0 or len(self.kinds) == 1 or not OK_MIN <= status < OK_END:
            return None
        lease_id = self._decoder.decode(body).lease_id.encode("ascii")
        report = b'{"lease_id":"' + lease_id + b'","ok":true,"latency_ms":7.5}'
        return Step(1, self._report_head % len(report) + report)


class Registrations(Calls):
    """Calls of PUT /v1/services/{service}/instances/{id}, one per instance, with tags and metadata."""

    def __init__(self, origin: Origin, spec: Register) -> None:
        """Prepare the template; it has the number of the instance."""
        path = f"/v1/services/{spec.service}/instances/INSTANCE"
        head = request_head("PUT", path, host=origin.host, token=origin.token, idempotent=False, body=True)
        # An hour: none of them falls silent in a run.
        place = '"host":"10.1.2.3","port":8080,"zone":"z1","ttl_seconds":3600'
        body = f'{{{place},"tags":{TAGS},"metadata":{METADATA}}}'.encode()
        template = head % len(body) + body
        super().__init__("register", template.replace(b"INSTANCE", INSTANCE), iter(range(spec.count)))

    def first(self) -> Step | None:
        """Return the next registration, or None after the last."""
        number = next(self._tenants, None)
        return None if number is None else Step(0, self._template % number)


class Heartbeats(Calls):
    """Calls of POST .../heartbeat, of every instance in turn."""

    def __init__(self, origin: Origin, spec: Beat) -> None:
        """Prepare the template; it has the number of the instance."""
        path = f"/v1/services/{spec.service}/instances/INSTANCE/heartbeat"
        head = request_head("POST", path, host=origin.host, token=origin.token, idempotent=False, body=False)
        super().__init__("heartbeat", head.replace(b"INSTANCE", INSTANCE), itertools.cycle(range(spec.count)))

    def first(self) -> Step | None:
        """Return the next heartbeat; never None."""
        return Step(0, self._template % next(self._tenants))


class Pulses(Calls):
    """Calls of GET /health."""

    def __init__(self, origin: Origin) -> None:
        """Prepare the one request."""
        head = request_head("GET", "/health", host=origin.host, token=origin.token, idempotent=False, body=False)
        super().__init__("health", head, iter(()))
        self._step = Step(0, head)

    def first(self) -> Step | None:
        """Return the call; never None."""
        return self._step


def build_locator(spec: LocatorSpec, origin: Origin) -> Workload:
    """Make the workload that `spec` describes."""
    match spec:
        case LookUp():
            return LookUps(origin, spec)
        case Register():
            return Registrations(origin, spec)
        case Beat():
            return Heartbeats(origin, spec)
        case Alive():
            return Pulses(origin)
