"""The ledger's scripts on the two servers that it must run on: the embedded one, and the Redis 7 of Debian."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.credits.ledger_house import house_of
from tests.debian import program
from tests.launcher import launched
from tests.lua.script_shard import ScriptShard

START_TIMEOUT_S = 90.0


@pytest.fixture(scope="session")
def redis_socket() -> Iterator[str]:
    """A real Redis on a unix socket, without persistence."""
    server = program("redis-server")
    with tempfile.TemporaryDirectory(prefix="shieldx-lua-") as directory:
        socket = f"{directory}/redis.sock"
        options = ("--port", "0", "--unixsocket", socket, "--save", "", "--logfile", f"{directory}/log")
        process = subprocess.Popen(launched([server, *options], Path(directory)), stdout=subprocess.DEVNULL)
        try:
            deadline_s = time.monotonic() + START_TIMEOUT_S
            while not Path(socket).exists():
                assert process.poll() is None, Path(f"{directory}/log").read_text()
                assert time.monotonic() < deadline_s, "redis-server does not start"
                time.sleep(0.01)
            yield socket
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="session", params=["valkey", "redis"])
def server_url(request: pytest.FixtureRequest) -> str:
    """URL of an empty database on the embedded server, then on Debian's Redis."""
    if request.param == "redis":
        return f"unix://{request.getfixturevalue('redis_socket')}?db=0"
    return house_of(request.config).redis.url.replace("db=0", "db=15")


@pytest.fixture(scope="session")
def connection(server_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server_url) as client:
        yield client


@pytest.fixture
def shard(connection: redis.Redis) -> ScriptShard:
    """An open, empty shard."""
    return ScriptShard(connection)
