"""Load on experiments: units are assigned, and outcomes are reported in batches."""

import itertools
from collections.abc import Iterator
from typing import Final

import aiohttp
import msgspec
import numpy as np

from bench.wire import request_head
from bench.workloads import OK_END, OK_MIN, Origin, Outcome, Step, Workload, WorkloadSpec, build

UNITS: Final = 1_000_000  # that assignments and outcomes are spread over: what seven digits can name
EXPERIMENTS: Final = {"bench-fixed": "fixed", "bench-thompson": "thompson"}
VARIANTS: Final = ({"name": "control", "control": True}, {"name": "challenger"})
SUCCESS_EVERY: Final = 10  # outcomes: a rate of 10 %
_UNIT: Final = b"u%07d"
_PICKS: Final = 1 << 18  # units drawn ahead and then repeated


class Assign(msgspec.Struct, tag="assign", frozen=True):
    """Ask which variant a random unit gets, one call each."""

    experiment: str
    units: int = UNITS


class ReportOutcomes(msgspec.Struct, tag="report_outcomes", frozen=True):
    """Report outcomes of random units in batches of `size`, every event once."""

    experiment: str
    size: int
    units: int = UNITS


AnySpec = WorkloadSpec | Assign | ReportOutcomes


class ExperimentsRefused(Exception):
    """The server did not make the experiments; the message holds its answer."""


def _random_units(units: int, seed: int) -> Iterator[int]:
    return itertools.cycle(np.random.default_rng(seed).integers(0, units, size=_PICKS).tolist())


def _template(origin: Origin, path: str, body: bytes, sample: tuple[object, ...]) -> bytes:
    """Return a whole POST request as one template: the body's values are of fixed width, so its length is known."""
    head = request_head("POST", path, host=origin.host, token=origin.token, idempotent=False, body=True)
    return head % len(body % sample) + body


class Assignments:
    """Calls of POST /v1/experiments/{name}/assign."""

    kinds: tuple[str, ...] = ("assign",)
    body_kinds: frozenset[int] = frozenset()

    def __init__(self, origin: Origin, spec: Assign, seed: int) -> None:
        """Prepare the template; it has one number, the unit."""
        path = f"/v1/experiments/{spec.experiment}/assign"
        self._template = _template(origin, path, b'{"unit_id":"' + _UNIT + b'"}', (0,))
        self._units = _random_units(spec.units, seed)

    def first(self) -> Step | None:
        """Return the next call; never None."""
        return Step(0, self._template % next(self._units))

    def after(self, kind: int, status: int, body: bytes) -> Step | None:  # noqa: ARG002
        """Return None: a task is one call."""
        return None

    def outcome(self, kind: int, status: int, body: bytes) -> Outcome:  # noqa: ARG002
        """Count one operation."""
        return Outcome(1, 0) if OK_MIN <= status < OK_END else Outcome(0, 1)


class _Merged(msgspec.Struct):
    accepted: int


class OutcomeBatches:
    """Calls of POST /v1/experiments/{name}/outcomes."""

    kinds: tuple[str, ...] = ("outcomes",)
    body_kinds = frozenset({0})

    def __init__(self, origin: Origin, spec: ReportOutcomes, seed: int) -> None:
        """Prepare the template: for each outcome the batch, its place in it, the unit, and the latency."""
        run = origin.run.encode("ascii")
        parts = []
        for place in range(spec.size):
            success = b"true" if place % SUCCESS_EVERY == 0 else b"false"
            parts.append(
                b'{"event_id":"'
                + run
                + b"-%09d-%05d"
                + b'","unit_id":"'
                + _UNIT
                + b'","success":'
                + success
                + b',"latency_ms":%03d.5}'
            )
        body = b'{"outcomes":[' + b",".join(parts) + b"]}"
        path = f"/v1/experiments/{spec.experiment}/outcomes"
        self._template = _template(origin, path, body, (1, 1, 1, 100) * spec.size)
        self._units = _random_units(spec.units, seed)
        self._size = spec.size
        self._sent = 0
        self._decoder = msgspec.json.Decoder(_Merged)

    def first(self) -> Step | None:
        """Return the next batch; never None."""
        self._sent += 1
        values: list[int] = []
        for place, unit in enumerate(itertools.islice(self._units, self._size)):
            values += (self._sent, place, unit, 100 + unit % 900)
        return Step(0, self._template % tuple(values))

    def after(self, kind: int, status: int, body: bytes) -> Step | None:  # noqa: ARG002
        """Return None: a task is one call."""
        return None

    def outcome(self, kind: int, status: int, body: bytes) -> Outcome:  # noqa: ARG002
        """Count what the answer says was accepted; events are sent once, so what is missing failed."""
        if not OK_MIN <= status < OK_END:
            return Outcome(0, self._size)
        accepted = self._decoder.decode(body).accepted
        return Outcome(accepted, self._size - accepted)


def build_any(spec: AnySpec, origin: Origin, seed: int) -> Workload:
    """Make the workload that `spec` describes."""
    match spec:
        case Assign():
            return Assignments(origin, spec, seed)
        case ReportOutcomes():
            return OutcomeBatches(origin, spec, seed)
        case _:
            return build(spec, origin, seed)


async def make_experiments(origin: Origin) -> None:
    """Create the experiments of the load, with a fixed split and with Thompson sampling; those that exist are kept.

    faults  ExperimentsRefused with the answer when one is refused
    """
    headers = {"Authorization": f"Bearer {origin.token}"}
    async with aiohttp.ClientSession(f"http://{origin.host}:{origin.port}", headers=headers) as session:
        for name, allocation in EXPERIMENTS.items():
            body = {"name": name, "allocation": allocation, "variants": list(VARIANTS), "seed": name}
            headers = {"Idempotency-Key": f"{origin.run}-{name}"}
            async with session.post("/v1/experiments", json=body, headers=headers) as answer:
                if answer.status not in {201, 409}:
                    raise ExperimentsRefused(f"{name}: {answer.status} {await answer.text()}")
