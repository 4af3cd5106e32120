"""What a backup, a restore or a migration does, step by step: for whoever watches, and for whoever asks later.

Each step is a line on stderr, in colour on a terminal, and a JSON line in `log.jsonl` of the backup directory, on disk
before the step begins.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from app.clock import now_ms, time_text
from app.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TextIO

LOG_NAME: Final = "log.jsonl"
DIM, GREEN, YELLOW, RED, PLAIN = ("\x1b[2m", "\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[0m")


class Journal:
    """The log of one run of one command. Nothing in it is a secret: URLs and values never enter."""

    def __init__(
        self, directory: Path, command: str, *, stream: TextIO | None = None,
        on_step: Callable[[str], None] = lambda _: None, quiet: bool = False,
    ) -> None:  # fmt: skip
        """`on_step` is called with the name of each step before it begins; `quiet` says nothing on stderr."""
        self._path = directory / LOG_NAME
        self._command = command
        self._run = f"{now_ms()}-{os.getpid()}"
        self._stream = sys.stderr if stream is None else stream
        self._colours = self._stream.isatty() and "NO_COLOR" not in os.environ
        self._on_step = on_step
        self._quiet = quiet

    def step(self, name: str, **details: Any) -> None:
        """Say that a step begins."""
        self._write("step", name, details)
        self._show(name, details, DIM)
        self._on_step(name)

    def done(self, name: str, **details: Any) -> None:
        """Say what has come of it."""
        self._write("done", name, details)
        self._show(name, details, GREEN)

    def warn(self, text: str, **details: Any) -> None:
        """Say what a person should know although the work goes on."""
        self._write("warning", text, details)
        self._show(text, details, YELLOW)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Log why the work inside fails. The command says it to whoever watches, as its last line."""
        try:
            yield
        except BaseException as error:
            self._write("failed", f"{type(error).__name__}: {error}", {})
            raise

    def bar(self, total: int, label: str) -> Progress:
        """Return a progress bar; silent where nobody watches."""
        return Progress(total, label, self._stream)

    def _write(self, kind: str, text: str, details: dict[str, Any]) -> None:
        line = {"at": time_text(now_ms()), "run": self._run, "command": self._command, "kind": kind, "text": text} | details
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            os.write(descriptor, orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _show(self, text: str, details: dict[str, Any], colour: str) -> None:
        if self._quiet:
            return
        tail = " ".join(f"{name}={value}" for name, value in details.items())
        paint, plain = (colour, PLAIN) if self._colours else ("", "")
        self._stream.write(f"{paint}{self._command}: {text}{plain}{' ' if tail else ''}{tail}\n")
        self._stream.flush()


def read_log(directory: Path) -> list[dict[str, Any]]:
    """Return the lines of a directory's log, oldest first; a last line that a power cut tore is left out."""
    try:
        lines = (directory / LOG_NAME).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(orjson.loads(line))
        except orjson.JSONDecodeError:
            continue
    return found
