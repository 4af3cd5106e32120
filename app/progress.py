"""One line on a terminal that says how far a long piece of work is. Silent where nobody watches."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing import TextIO

BAR_WIDTH: Final = 24  # characters; with label, counts, rate and time left the line stays below 80 columns
REDRAW_INTERVAL_S: Final = 0.1  # people see no difference above ten a second, and writing to a terminal is slow
CLEAR_LINE: Final = "\r\x1b[2K"
SECONDS_PER_MINUTE: Final = 60


class Progress:
    """A bar on stderr, redrawn in place while it is a terminal; nothing at all otherwise."""

    def __init__(self, total: int, label: str, stream: TextIO | None = None) -> None:
        """`total` is in the units of `update`; 0 means unknown, and a count is shown instead of a bar."""
        self.total = total
        self.done = 0
        self._label = label
        self._stream = sys.stderr if stream is None else stream
        self._shown = self._stream.isatty()
        self._started_s = time.monotonic()
        self._drawn_s = 0.0

    def update(self, done: int, total: int | None = None) -> None:
        """Say that `done` units are behind us; `total` may become known, or change, on the way."""
        self.done = done
        if total is not None:
            self.total = total
        if not self._shown:
            return
        now_s = time.monotonic()
        if now_s - self._drawn_s >= REDRAW_INTERVAL_S:
            self._drawn_s = now_s
            self._stream.write(CLEAR_LINE + self.line(now_s - self._started_s))
            self._stream.flush()

    def advance(self, units: int = 1) -> None:
        """Say that `units` more are behind us."""
        self.update(self.done + units)

    def close(self) -> None:
        """Remove the line, so that the result stands alone."""
        if self._shown:
            self._stream.write(CLEAR_LINE)
            self._stream.flush()

    def line(self, elapsed_s: float) -> str:
        """Return the text of the line after `elapsed_s` seconds of work."""
        rate = self.done / elapsed_s if elapsed_s > 0 else 0.0
        if self.total <= 0:
            return f"{self._label} {self.done:,} {rate:,.0f}/s"
        share = min(self.done / self.total, 1.0)
        bar = ("#" * round(share * BAR_WIDTH)).ljust(BAR_WIDTH, ".")
        left = f", {_duration((self.total - self.done) / rate)} left" if rate > 0 and self.done < self.total else ""
        return f"{self._label} [{bar}] {share:4.0%} {self.done:,}/{self.total:,} {rate:,.0f}/s{left}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), SECONDS_PER_MINUTE)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
