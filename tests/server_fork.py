"""Server processes forked from one that has imported the program: a start without the second that the imports take.

The tests start about a hundred servers. `python -m tests.server_fork` imports what `shieldx serve` imports, and then makes
a child for each order: with the arguments, environment, directory and log of the order it runs `app.cli.main`, as the
command does. That the command itself starts and stops is tested in tests/flow/test_start_and_stop.py, without this.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Final

REPOSITORY: Final = Path(__file__).resolve().parents[1]
ORDER_BYTES_MAX: Final = 128 * 1024  # an environment is some kilobytes


class ForkedServer:
    """A server process, with the part of the interface of subprocess.Popen that tests use."""

    def __init__(self, source: ServerFork, pid: int) -> None:
        """`pid` is alive, or has ended and waits for `source` to take its exit code."""
        self.pid: Final = pid
        self.returncode: int | None = None
        self._source = source
        self._ended = os.pidfd_open(pid)  # readable once the process has ended

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None while the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._ended], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"server {self.pid}", timeout or 0)
            self.returncode = self._source.exit_code(self.pid)
            os.close(self._ended)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class ServerFork:
    """The process that servers are forked from. It ends with the one that made it, and its servers end with it."""

    def __init__(self) -> None:
        """Start it; the first order waits for its imports."""
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen([sys.executable, "-m", "tests.server_fork"], cwd=REPOSITORY, stdin=theirs)
        atexit.register(self.close)

    def launch(self, arguments: list[str], environment: dict[str, str], directory: Path, log: Path) -> ForkedServer:
        """Start `shieldx ARGUMENTS` in `directory`; its output is appended to `log`."""
        order = {"arguments": arguments, "environment": environment, "directory": str(directory), "log": str(log)}
        return ForkedServer(self, self._ask(order))

    def exit_code(self, pid: int) -> int:
        """Return the exit code of a server that has ended."""
        return self._ask({"ended": pid})

    def close(self) -> None:
        """End it, and every server that still runs."""
        self._orders.close()
        self._process.wait()

    def _ask(self, order: dict[str, Any]) -> int:
        with self._lock:
            self._orders.send(json.dumps(order).encode())
            answer = self._orders.recv(64)
        assert answer, f"the process that servers are forked from ended with code {self._process.poll()}"
        return int(answer)


@functools.cache
def server_fork() -> ServerFork:
    """Return the one of this test process."""
    return ServerFork()


def _become_server(order: dict[str, Any], source: int) -> int:
    """Turn this process, just forked from the process `source`, into the one that the order describes; return its exit code.

    The kernel kills it when `source` is gone: a test run that is killed leaves no server behind.
    """
    from app.cli import main  # noqa: PLC0415 - only the process that is forked from needs the program
    from app.embedded.launch import PR_SET_PDEATHSIG, Kernel  # noqa: PLC0415

    Kernel().prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != source:
        return 1  # it was gone before the kernel could be asked
    nothing, log = os.open(os.devnull, os.O_RDONLY), os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for ours, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(ours, target)
    os.close(nothing)
    os.close(log)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["directory"])
    sys.argv = ["shieldx", *order["arguments"]]
    return main(order["arguments"])


def run() -> int:
    """Import the program and carry out orders, which arrive at standard input, until nobody is left to send one."""
    import app.main  # noqa: F401, PLC0415
    from app.web import logs  # noqa: F401, PLC0415

    gc.collect()
    gc.freeze()
    source, orders = os.getpid(), socket.socket(fileno=os.dup(0))
    while packet := orders.recv(ORDER_BYTES_MAX):
        order = json.loads(packet)
        if "ended" in order:
            answer = os.waitstatus_to_exitcode(os.waitpid(order["ended"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                orders.close()
                return _become_server(order, source)
        orders.send(str(answer).encode())
    return 0


if __name__ == "__main__":
    sys.exit(run())
