"""A long closed-loop run that shows whether the server's memory grows."""

from typing import Final

import msgspec
import numpy as np

from bench.load import LoadSpec
from bench.rounds import SAMPLE_SECONDS, measure
from bench.servers import Servers
from bench.workloads import Consume

SETTLED_SHARE: Final = 0.5  # part of the run, from its end, that the slope is fitted to: caches fill before
CONNECTIONS: Final = 128


class Soak(msgspec.Struct, frozen=True, kw_only=True):
    """Resident memory of the server over a run; the slope is a least-squares line over the settled part."""

    seconds: float
    settled_seconds: float
    operations_per_s: float
    errors: int
    first_bytes: int
    last_bytes: int
    slope_bytes_per_s: float
    slope_bytes_per_operation: float
    memory_samples: list[int]


def slope_per_s(samples: list[int], interval_seconds: float) -> float:
    """Least-squares slope of equally spaced samples, in their unit per second; 0 for fewer than two."""
    if len(samples) < 2:
        return 0.0
    at = np.arange(len(samples)) * interval_seconds
    return float(np.polyfit(at, np.array(samples, dtype=np.float64), 1)[0])


async def soak(servers: Servers, *, tenants: int, seconds: float, bar: bool) -> Soak:
    """Consume on `tenants` accounts for `seconds` and watch the server's memory once a second.

    faults  those of `bench.rounds.measure`
    """
    spec = LoadSpec(
        label="soak",
        origin=servers.origin("shieldx"),
        workload=Consume(tenants),
        connections=CONNECTIONS,
        seconds=seconds,
        bar=bar,
    )
    measured = await measure(spec, servers.processes["shieldx"].pid)
    samples = measured.memory_samples
    settled = samples[round(len(samples) * (1 - SETTLED_SHARE)) :]
    slope = slope_per_s(settled, SAMPLE_SECONDS)
    load = measured.load
    return Soak(
        seconds=seconds,
        settled_seconds=len(settled) * SAMPLE_SECONDS,
        operations_per_s=load.operations_per_s,
        errors=load.errors,
        first_bytes=samples[0],
        last_bytes=samples[-1],
        slope_bytes_per_s=slope,
        slope_bytes_per_operation=slope / load.operations_per_s if load.operations_per_s else 0.0,
        memory_samples=samples,
    )
