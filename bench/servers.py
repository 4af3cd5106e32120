"""Starts what a run needs, waits until it answers, and stops it: shieldx, the ceiling and the peer."""

import asyncio
import contextlib
import os
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import asyncpg

from app.embedded import EmbeddedServers, Endpoints, read_endpoints
from bench.workloads import Origin

HOST: Final = "127.0.0.1"
REPOSITORY: Final = Path(__file__).parent.parent
READY_SECONDS_MAX: Final = 90.0  # seconds; a first start makes a database and may read cold binaries
POLL_SECONDS: Final = 0.05  # seconds between two looks at /ready
STOP_SECONDS_MAX: Final = 30.0  # seconds that a server has to drain before it is killed
LOG_TAIL_CHARS: Final = 2_000  # characters of a failed server's output that are shown
PEER_DATABASE: Final = "bench_plain_postgres"
PEER_BALANCE: Final = 10**12  # credits of every tenant of the peer: more than any run consumes


class ServerError(Exception):
    """A server under test ended or did not become ready; the message ends with its last output."""


def _inherited() -> dict[str, str]:
    """Return the environment without what the caller's shell exports for a server of its own."""
    foreign = ("SHIELDX_", "REDIS_URL", "DATABASE_URL")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


def free_port() -> int:
    """Return a TCP port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


class ServerProcess:
    """One server under test, in its own process."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, origin: Origin, log: Path) -> None:
        """Own `process`, which serves `origin` and writes its output to `log`."""
        self.name = name
        self.origin = origin
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @classmethod
    async def start(
        cls, name: str, arguments: Sequence[str], *, environment: dict[str, str], origin: Origin, log: Path
    ) -> "ServerProcess":
        """Start `python` with `arguments` and wait until /ready answers 200.

        faults  ServerError when it ends before, or takes longer than READY_SECONDS_MAX
        """
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                cwd=REPOSITORY,
                env=_inherited() | environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # A Ctrl-C in the terminal must reach the harness only: it stops the servers in its own order.
                start_new_session=True,
            )
        server = cls(name, process, origin, log)
        try:
            await server._ready()
        except BaseException:
            await server.stop()
            raise
        return server

    async def _ready(self) -> None:
        url = f"http://{self.origin.host}:{self.origin.port}/ready"
        deadline = asyncio.get_running_loop().time() + READY_SECONDS_MAX
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(READY_SECONDS_MAX)) as session:
            while asyncio.get_running_loop().time() < deadline:
                if self._process.returncode is not None:
                    raise ServerError(f"{self.name} ended with {self._process.returncode}:\n{self._tail()}")
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with session.get(url) as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(POLL_SECONDS)
        raise ServerError(f"{self.name} was not ready after {READY_SECONDS_MAX:.0f} s:\n{self._tail()}")

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-LOG_TAIL_CHARS:]

    async def stop(self) -> None:
        """Stop it as an operator would, by SIGTERM, and kill it only if that does not end it."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_SECONDS_MAX)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


class Servers:
    """The servers of a run by name: `shieldx`, `ceiling`, `postgres`."""

    def __init__(self, processes: dict[str, ServerProcess], endpoints: Endpoints | None) -> None:
        """Hold what runs; `endpoints` are the databases, where any server needs them."""
        self.processes = processes
        self.endpoints = endpoints

    def origin(self, name: str) -> Origin:
        """Where `name` is reached, with a key prefix that no other call of this has given out."""
        origin = self.processes[name].origin
        return Origin(origin.host, origin.port, origin.token, secrets.token_hex(4))


@asynccontextmanager
async def running(names: frozenset[str], directory: Path, *, tenants: int, peer_connections: int) -> AsyncIterator[Servers]:
    """Run the servers `names` with their data below `directory`, which exists, while the context is open.

    shieldx runs as it is shipped, with its own embedded Redis and Postgres. The peer gets a database in the
    same Postgres, so both commit to one disk with one set of settings; without shieldx, one is started for
    it. `tenants` is how many accounts the peer is given.

    faults  ServerError; the faults of `app.embedded`
    """
    async with AsyncExitStack() as stack:
        processes: dict[str, ServerProcess] = {}
        endpoints: Endpoints | None = None
        if "shieldx" in names:
            processes["shieldx"] = await _start(stack, "shieldx", directory, *_shieldx(directory))
            endpoints = read_endpoints(directory / "shieldx")
        if "ceiling" in names:
            processes["ceiling"] = await _start(stack, "ceiling", directory, ["-m", "bench.ceiling"], {})
        if "postgres" in names:
            if endpoints is None:
                embedded = EmbeddedServers(directory / "databases", on_exit=_database_ended)
                endpoints = await stack.enter_async_context(embedded)
            url = await _make_peer_database(endpoints.admin_database_url)
            arguments = ["-m", "bench.plain_postgres", "--connections", str(peer_connections)]
            arguments += ["--tenants", str(tenants), "--balance", str(PEER_BALANCE)]
            environment = {"DATABASE_URL": url}
            processes["postgres"] = await _start(stack, "postgres", directory, arguments, environment)
        yield Servers(processes, endpoints)


def _shieldx(directory: Path) -> tuple[list[str], dict[str, str]]:
    arguments = ["-m", "app", "serve", "--shadow-port", str(free_port())]
    arguments += ["--data-dir", str(directory / "shieldx")]
    return arguments, {"SHIELDX_ROOT_KEY": secrets.token_urlsafe(32)}


async def _start(
    stack: AsyncExitStack, name: str, directory: Path, arguments: list[str], environment: dict[str, str]
) -> ServerProcess:
    origin = Origin(HOST, free_port(), environment.get("SHIELDX_ROOT_KEY", "unused"), name)
    server = await ServerProcess.start(
        name,
        [*arguments, "--host", HOST, "--port", str(origin.port)],
        environment=environment,
        origin=origin,
        log=directory / f"{name}.log",
    )
    stack.push_async_callback(server.stop)
    return server


def _database_ended(name: str, code: int) -> None:
    sys.stderr.write(f"bench: {name} ended with {code} during the run; its figures are not to be used\n")


async def _make_peer_database(admin_url: str) -> str:
    """Make an empty database for the peer and return its URL."""
    connection = await asyncpg.connect(admin_url)
    try:
        await connection.execute(f"DROP DATABASE IF EXISTS {PEER_DATABASE}")
        await connection.execute(f"CREATE DATABASE {PEER_DATABASE}")
    finally:
        await connection.close()
    return urlunsplit(urlsplit(admin_url)._replace(path=f"/{PEER_DATABASE}"))
