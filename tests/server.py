"""A shieldx server process for tests: start, wait until it is ready, pause, stop, SIGKILL, start again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson

import app
from tests.launcher import launched
from tests.server_fork import ForkedServer, server_fork

REPOSITORY: Final = Path(app.__file__).resolve().parents[1]
ROOT_KEY: Final = "shx_root_of-the-tests-and-nothing-else"
MASTER_KEY: Final = bytes(range(32)).hex()
READY_TIMEOUT_S: Final = 90.0
STOP_TIMEOUT_S: Final = 90.0
POLL_S: Final = 0.02
LOG_TAIL_CHARACTERS: Final = 6_000
ACCESS_LOGGER: Final = '"logger":"shieldx.web"'


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ShieldxServer:
    """One server process on fixed ports, so that a restarted one is found at the same address.

    paused   stopped by SIGSTOP now; `pauses` counts how often it was
    up       it has answered since its start, and nobody has told it to end: from now on it must answer
    """

    def __init__(
        self,
        directory: Path,
        redis_url: str = "",
        database_url: str = "",
        *,
        shards: int = 1,
        name: str = "replica",
        code: Path = REPOSITORY,
        forked: bool = True,
        **settings: str,
    ) -> None:
        """`directory` gets the log; without URLs also the embedded servers. `settings` are further SHIELDX_ variables.

        code    the checkout that it runs
        forked  from a process that has imported the program of this checkout; else the command is started as users start it
        """
        directory.mkdir(parents=True, exist_ok=True)
        self.name: Final = name
        self.port: Final = free_port()
        self.shadow_port: Final = free_port()
        self.log: Final = directory / f"{name}.log"
        self.process: subprocess.Popen[bytes] | ForkedServer | None = None
        self.paused = False
        self.pauses = 0
        self.up = False
        self._directory = directory
        self._forked = forked and code == REPOSITORY
        self._environment = {
            name: value for name, value in os.environ.items()
            if not name.startswith(("SHIELDX_", "PG")) and name not in {"REDIS_URL", "DATABASE_URL"}
        } | {
            "SHIELDX_ROOT_KEY": ROOT_KEY,
            "SHIELDX_MASTER_KEYS": MASTER_KEY if redis_url else "",
            "SHIELDX_LEDGER_SHARDS": str(shards),
            "SHIELDX_REPLICA_NAME": name,
            "PYTHONPATH": str(code),
        } | {f"SHIELDX_{key.upper()}": value for key, value in settings.items()}  # fmt: skip
        if redis_url:
            self._environment |= {"REDIS_URL": redis_url, "DATABASE_URL": database_url}

    @property
    def url(self) -> str:
        """Base URL of the API."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        """Whether the process runs, paused or not."""
        return self.process is not None and self.process.poll() is None

    @property
    def log_tail(self) -> str:
        """What the server wrote last, without the lines of single requests that were no fault of it."""
        with contextlib.suppress(FileNotFoundError):
            lines = self.log.read_text(errors="replace").splitlines()
            telling = [line for line in lines if ACCESS_LOGGER not in line or " 500" in line]
            return "\n".join(telling)[-LOG_TAIL_CHARACTERS:]
        return ""

    def launch(self) -> None:
        """Start the process and return at once."""
        self.up = self.paused = False
        arguments = ["serve", "--port", str(self.port), "--shadow-port", str(self.shadow_port)]
        arguments += ["--data-dir", str(self._directory / "data")]
        if self._forked:
            self.process = server_fork().launch(arguments, self._environment, self._directory, self.log)
            return
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                launched([sys.executable, "-m", "app", *arguments], self._directory),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment,
            )  # fmt: skip

    async def start(self) -> None:
        """Start the process and wait until it is ready."""
        self.launch()
        await self.wait_ready()

    async def readiness(self) -> tuple[int, dict[str, Any]]:
        """Return status and body of GET /ready; status 0 when nobody answers."""
        timeout = aiohttp.ClientTimeout(total=5)
        try:
            async with aiohttp.ClientSession(timeout=timeout) as session, session.get(f"{self.url}/ready") as answer:
                body = orjson.loads(await answer.read())
                self.up = self.alive
                return answer.status, body
        except (aiohttp.ClientError, TimeoutError, ConnectionError):
            return 0, {}

    async def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> float:
        """Wait until GET /ready is 200 and return the seconds; AssertionError with the log when it takes too long."""
        started_s = time.monotonic()
        while True:
            status, body = await self.readiness()
            if status == 200:
                return time.monotonic() - started_s
            assert self.alive, f"{self.name} ended with code {self.exit_code}:\n{self.log_tail}"
            waited_s = time.monotonic() - started_s
            assert waited_s < timeout_s, f"{self.name} is not ready after {waited_s:.1f} s: {body}\n{self.log_tail}"
            await asyncio.sleep(POLL_S)

    @property
    def exit_code(self) -> int | None:
        """Exit code of the process, None while it runs or before its start."""
        return None if self.process is None else self.process.poll()

    def kill(self) -> None:
        """SIGKILL the process and wait for its end."""
        self.up = False
        if self.process is not None:
            self.process.kill()
            self.process.wait(STOP_TIMEOUT_S)
        self.paused = False

    def pause(self) -> None:
        """Stop the process in its tracks."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        self.paused = True
        self.pauses += 1

    def resume(self) -> None:
        """Let a paused process go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
        self.paused = False

    def stop(self) -> int:
        """Send SIGTERM, wait for the end and return the exit code."""
        assert self.process is not None
        self.up = False
        self.process.terminate()
        return self.process.wait(STOP_TIMEOUT_S)

    def run_command(self, *arguments: str, database_url: str = "") -> subprocess.CompletedProcess[str]:
        """Run another `shieldx` command with this server's settings and return how it ended."""
        environment = self._environment | ({"DATABASE_URL": database_url} if database_url else {})
        return subprocess.run(
            [sys.executable, "-m", "app", *arguments],
            cwd=self._directory, env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
