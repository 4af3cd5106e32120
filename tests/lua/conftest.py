"""The ledger's scripts on the two servers that it must run on: the embedded one, and the Redis 7 of Debian."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.credits.ledger_house import house_of
from tests.lua.script_shard import ScriptShard

INSTALL_TIMEOUT_S = 300
START_TIMEOUT_S = 10.0
REDIS_MAJOR = 7


def debian_redis() -> Path:
    """Return the program of a real Redis 7; as root install Debian's package when there is none.

    Fails, and does not skip, where there is none: what is not tested on Redis cannot be promised for it.
    """
    for attempt in ("found", "installed"):
        program = shutil.which("redis-server", path=f"/usr/bin:/usr/local/bin:{os.environ.get('PATH', '')}")
        if program is not None:
            text = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
            version = re.search(r"Redis server v=(\d+)", text)
            if version is not None and int(version[1]) >= REDIS_MAJOR:
                return Path(program)
        if attempt == "found" and os.geteuid() == 0 and shutil.which("apt-get") is not None:
            environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
            for words in (["update"], ["install", "-y", "--no-install-recommends", "redis-server"]):
                subprocess.run(["apt-get", "-q", *words], env=environment, timeout=INSTALL_TIMEOUT_S, check=False)
    pytest.fail(
        f"no redis-server {REDIS_MAJOR} is installed: `apt-get install redis-server` as root, then run the tests again"
    )


@pytest.fixture(scope="session")
def redis_socket() -> Iterator[str]:
    """A real Redis on a unix socket, without persistence."""
    program = debian_redis()
    with tempfile.TemporaryDirectory(prefix="shieldx-lua-") as directory:
        socket = f"{directory}/redis.sock"
        process = subprocess.Popen(
            [
                program,
                "--port",
                "0",
                "--unixsocket",
                socket,
                "--save",
                "",
                "--dir",
                directory,
                "--logfile",
                f"{directory}/log",
            ],
            stdout=subprocess.DEVNULL,
        )
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
