"""A periodic wake-up fine enough for an open loop: uvloop's own timers round to whole milliseconds."""

import asyncio
import ctypes
import os
import sys
from collections.abc import Callable
from typing import Final, Protocol

CLOCK_MONOTONIC: Final = 1  # the clock that time.perf_counter reads on Linux
TFD_NONBLOCK: Final = 0o4000
TFD_CLOEXEC: Final = 0o2000000
TFD_TIMER_ABSTIME: Final = 1
COUNTER_BYTES: Final = 8  # bytes; a read of a timerfd returns the number of expirations as uint64
NS_PER_SECOND: Final = 1_000_000_000
COARSE_SECONDS: Final = 0.001  # seconds; the resolution of an event loop timer


class Pulse(Protocol):
    """Something that calls back periodically until it is stopped."""

    def stop(self) -> None:
        """End the calls; safe to call twice."""


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("first", _TimeSpec))


def _time_spec(seconds: float) -> _TimeSpec:
    whole, rest = divmod(round(seconds * NS_PER_SECOND), NS_PER_SECOND)
    return _TimeSpec(whole, rest)


class KernelPulse:
    """Calls `tick` once per `interval_seconds` from `first_at` on, by a Linux timerfd (about 0.1 ms late).

    Expirations that pass while the loop is busy are folded into one call; `tick` looks at the clock.
    """

    def __init__(self, tick: Callable[[], None], *, first_at: float, interval_seconds: float) -> None:
        """Arm the timer.

        first_at  seconds on the clock of time.perf_counter
        faults    OSError when the kernel refuses the timer
        source    timerfd_create(2)
        """
        self._tick = tick
        self._loop = asyncio.get_running_loop()
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = libc.timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        spec = _TimerSpec(_time_spec(interval_seconds), _time_spec(first_at))
        if libc.timerfd_settime(self._fd, TFD_TIMER_ABSTIME, ctypes.byref(spec), None) != 0:
            error = ctypes.get_errno()
            os.close(self._fd)
            raise OSError(error, "timerfd_settime")
        self._loop.add_reader(self._fd, self._expired)

    def _expired(self) -> None:
        os.read(self._fd, COUNTER_BYTES)
        self._tick()

    def stop(self) -> None:
        """Disarm and close the timer."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


class LoopPulse:
    """The same by the event loop's timer, for systems without timerfd; up to a millisecond late."""

    def __init__(self, tick: Callable[[], None], *, first_at: float, interval_seconds: float) -> None:
        """Start as `KernelPulse` does; intervals under a millisecond are lengthened to one."""
        self._tick = tick
        self._interval_seconds = max(interval_seconds, COARSE_SECONDS)
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_at(first_at, self._expired)

    def _expired(self) -> None:
        self._timer = self._loop.call_later(self._interval_seconds, self._expired)
        self._tick()

    def stop(self) -> None:
        """Cancel the timer."""
        self._timer.cancel()


def start_pulse(tick: Callable[[], None], *, first_at: float, interval_seconds: float) -> Pulse:
    """Start the finest pulse that this system has."""
    if sys.platform == "linux":
        return KernelPulse(tick, first_at=first_at, interval_seconds=interval_seconds)
    return LoopPulse(tick, first_at=first_at, interval_seconds=interval_seconds)
