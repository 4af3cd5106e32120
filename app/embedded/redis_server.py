"""The Redis-compatible server: its command line, its mark on the data, when it is ready."""

import asyncio
import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.embedded.account import Account
from app.embedded.binaries import RedisBinary, find_redis
from app.embedded.child import Command
from app.embedded.directory import REDIS_SOCKET, DataDirectory, make_server_directory, write_whole
from app.embedded.errors import DataDirectoryRefused
from app.embedded.leftovers import REDIS_STOP

PING_TIMEOUT_S: Final = 5.0  # a loading server answers at once; a stopped one may not answer at all

SETTINGS: Final = {
    "port": "0",
    "unixsocketperm": "700",
    "dir": ".",
    "daemonize": "no",
    "logfile": "",
    "save": "",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "aof-load-truncated": "yes",
    "maxmemory-policy": "noeviction",
}
"""What the ledger relies on: nothing is evicted, at most one second of writes is lost in a crash."""

# The bundled server has no jemalloc. With glibc's default of 7 chunks a size, most of what a script frees and takes again
# goes through the heap: 40 us an operation; with 8,000 of them 34, for 6 MiB. Another C library takes no notice.
MALLOC: Final = "glibc.malloc.tcache_count=8000"


@dataclass(frozen=True)
class RedisServer:
    """One Redis-compatible server on a data directory, not yet running."""

    command: Command
    socket: Path

    async def is_ready(self) -> bool:
        """Whether the server answers PING; it does not while it loads its data."""
        try:
            async with asyncio.timeout(PING_TIMEOUT_S):
                reader, writer = await asyncio.open_unix_connection(self.socket)
                try:
                    writer.write(b"PING\r\n")
                    return await reader.readline() == b"+PONG\r\n"
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False


async def prepare_redis(directory: DataDirectory, sockets: Path, account: Account | None) -> RedisServer:
    """Choose the program that can open the data, and mark the data with it.

    refusal  DataDirectoryRefused: the data was written by another kind or a later version
    faults   BinaryMissing
    """
    binary = await find_redis(read_mark(directory))
    make_server_directory(directory.redis, account)
    _write_mark(directory, binary)
    socket = sockets / REDIS_SOCKET
    options = {**SETTINGS, "unixsocket": str(socket)}
    arguments = (part for name, value in options.items() for part in (f"--{name}", value))
    command = Command(
        name="redis",
        argv=(str(binary.server), *arguments),
        cwd=directory.redis,
        reach=(directory.redis, sockets),
        log=directory.log / "redis.log",
        account=account,
        death_signal=signal.SIGTERM,
        stop_plan=REDIS_STOP,
        unready_plan=REDIS_STOP,
        environment={"GLIBC_TUNABLES": MALLOC},
    )
    return RedisServer(command, socket)


def read_mark(directory: DataDirectory) -> tuple[str, tuple[int, ...]] | None:
    """Kind and version that wrote the data; None if there is no data yet."""
    try:
        mark = json.loads(directory.redis_mark.read_text())
        return str(mark["kind"]), tuple(int(part) for part in mark["version"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise DataDirectoryRefused(
            f"{directory.redis_mark} does not name the server that wrote {directory.redis}. "
            'Restore it, for example {"kind": "valkey", "version": [9, 1, 2]}.'
        ) from None


def _write_mark(directory: DataDirectory, binary: RedisBinary) -> None:
    if read_mark(directory) != (binary.kind, binary.version):
        write_whole(directory.redis_mark, json.dumps({"kind": binary.kind, "version": binary.version}) + "\n")
