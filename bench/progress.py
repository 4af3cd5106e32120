"""A progress bar on standard error."""

import sys
from typing import Final, TextIO

WIDTH: Final = 24  # characters; leaves room for the label and the rate in 80 columns


def bar_wanted(*, forced: bool, stream: TextIO | None = None) -> bool:
    """Say whether to draw: when forced, or when `stream` (standard error by default) is a terminal."""
    return forced or (stream or sys.stderr).isatty()


def bar_line(label: str, done: float, total: float, rate_per_s: float, unit: str) -> str:
    """One line of the bar, for example `consume 64c  [#####...]  5/10 s  12,345/s`.

    done, total  in `unit`; done beyond total draws a full bar
    """
    share = 1.0 if total <= 0 else min(max(done / total, 0.0), 1.0)
    filled = round(share * WIDTH)
    marks = "#" * filled + "." * (WIDTH - filled)
    return f"{label:<30.30} [{marks}] {done:>7,.0f}/{total:,.0f} {unit} {rate_per_s:>9,.0f}/s"


class Bar:
    """Redraws one line in place; draws nothing when it is not shown."""

    def __init__(self, label: str, total: float, unit: str, *, shown: bool) -> None:
        """Remember what is measured: `total` in `unit`, for example 10 and `s`."""
        self._label, self._total, self._unit = label, total, unit
        self._shown = shown
        self._stream = sys.stderr

    def draw(self, done: float, rate_per_s: float) -> None:
        """Redraw the line."""
        if self._shown:
            self._stream.write("\r" + bar_line(self._label, done, self._total, rate_per_s, self._unit))
            self._stream.flush()

    def clear(self) -> None:
        """Erase the line, so that what is printed next starts on a clean one."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
