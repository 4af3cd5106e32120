"""The progress line: silent without a terminal, one line with one."""

from __future__ import annotations

from app.progress import Progress


class Terminal:
    """A stream that keeps what was written and says that it is a terminal, or not."""

    def __init__(self, *, shown: bool) -> None:
        self.text = ""
        self._shown = shown

    def isatty(self) -> bool:
        return self._shown

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


def test_progress_is_silent_without_a_terminal() -> None:
    stream = Terminal(shown=False)
    bar = Progress(10, "work", stream)  # type: ignore[arg-type]

    bar.advance(5)
    bar.close()

    assert stream.text == ""
    assert bar.done == 5


def test_progress_draws_one_line_and_removes_it() -> None:
    stream = Terminal(shown=True)
    bar = Progress(10, "work", stream)  # type: ignore[arg-type]

    bar.update(5)
    bar.update(6)
    bar.close()

    assert stream.text.count("work [") == 1
    assert "\n" not in stream.text
    assert stream.text.endswith("\r\x1b[2K")


def test_a_progress_line_shows_share_rate_and_time_left() -> None:
    bar = Progress(1_000, "work", Terminal(shown=False))  # type: ignore[arg-type]
    bar.update(250)

    assert bar.line(2.0) == "work [######..................]  25% 250/1,000 125/s, 6 s left"
    bar.update(7, 0)
    assert bar.line(1.0) == "work 7 7/s"
