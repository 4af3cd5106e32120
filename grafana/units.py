"""Grafana's units, as far as the dashboards use them, and how a value is written in each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS: Final = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
THOUSANDS: Final = ((1e9, " B"), (1e6, " M"), (1e3, " K"))
BINARY: Final = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"))


def _digits(value: float) -> str:
    """Return three significant digits, as many as a glance takes in."""
    text = f"{value:.3g}"
    return f"{value:.0f}" if "e" in text and abs(value) >= 1 else text


def seconds(value: float) -> str:
    """Return a duration in the largest unit of which there is at least one."""
    for size, name in SECONDS:
        if abs(value) >= size:
            return f"{_digits(value / size)} {name}"
    return "0 s" if value == 0 else f"{_digits(value * 1e6)} µs"


def thousands(value: float) -> str:
    """Return a count in thousands, millions or billions."""
    for size, name in THOUSANDS:
        if abs(value) >= size:
            return f"{_digits(value / size)}{name}"
    return _digits(value)


def binary(value: float) -> str:
    """Return bytes in powers of 1,024."""
    for size, name in BINARY:
        if abs(value) >= size:
            return f"{_digits(value / size)} {name}"
    return f"{_digits(value)} B"


UNITS: Final[dict[str, Callable[[float], str]]] = {
    "none": _digits,
    "short": thousands,
    "percentunit": lambda value: f"{_digits(value * 100)}%",
    "s": seconds,
    "d": lambda value: seconds(value * 86_400),
    "bytes": binary,
    "reqps": lambda value: f"{thousands(value)} req/s",
    "ops": lambda value: f"{thousands(value)} ops/s",
    "cps": lambda value: f"{thousands(value)} c/s",
}
"""By Grafana's name of the unit: writes a value as Grafana does, with three digits."""
