"""CPU time and memory of the processes under test."""

import contextlib
import os
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec
import psutil

DATABASE_NAMES: Final = {"postgres": "postgres", "redis-server": "redis", "valkey-server": "redis"}


class Usage(msgspec.Struct, frozen=True):
    """One group of processes over a measured time, or at one moment where CPU time is since their start."""

    cpu_seconds: float
    memory_bytes: int


def tree_usage(pid: int) -> Usage:
    """CPU time since the start, and resident memory, of a process and all below it but the databases.

    faults  psutil.NoSuchProcess when the process is gone
    """
    root = psutil.Process(pid)
    members = [root, *(one for one in root.children(recursive=True) if _database(one) is None)]
    return _sum(members, shared=False)


def database_usage() -> dict[str, Usage]:
    """The same for the Postgres and the Redis below this process, by `postgres` and `redis`.

    Memory is the proportional set size: every Postgres process maps the same shared buffers, and adding up
    resident sizes would count them once per connection.
    """
    groups: dict[str, list[psutil.Process]] = {}
    for one in psutil.Process(os.getpid()).children(recursive=True):
        name = _database(one)
        if name is not None:
            groups.setdefault(name, []).append(one)
    return {name: _sum(members, shared=True) for name, members in groups.items()}


def _database(process: psutil.Process) -> str | None:
    with contextlib.suppress(psutil.Error):
        return DATABASE_NAMES.get(process.name())
    return None


def _sum(processes: Iterable[psutil.Process], *, shared: bool) -> Usage:
    cpu_seconds, memory_bytes = 0.0, 0
    for process in processes:
        # A process may end while it is read; what it used moves to its parent's children times.
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            cpu_seconds += times.user + times.system + times.children_user + times.children_system
            memory_bytes += _proportional_bytes(process) if shared else process.memory_info().rss
    return Usage(cpu_seconds, memory_bytes)


def _proportional_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.AccessDenied, AttributeError):  # Not ours to read, or a system without this number.
        return int(process.memory_info().rss)


class MachineTime(NamedTuple):
    """CPU seconds of the whole machine since boot, all cores together."""

    busy: float
    stolen: float  # given by the hypervisor to other machines; not part of `busy`
    total: float


def machine_time() -> MachineTime:
    """Read the machine's CPU time; `stolen` is 0 where the system does not tell."""
    times = psutil.cpu_times()
    stolen = float(getattr(times, "steal", 0.0))
    # Guest time is part of user time already.
    total = sum(times) - float(getattr(times, "guest", 0.0)) - float(getattr(times, "guest_nice", 0.0))
    idle = times.idle + float(getattr(times, "iowait", 0.0))
    return MachineTime(total - idle - stolen, stolen, total)
