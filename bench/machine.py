"""What a result was measured on: the machine, the versions, the commit."""

import asyncio
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import asyncpg
import msgspec
import psutil
import redis.asyncio

from bench.servers import REPOSITORY, Servers


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Facts that a figure means nothing without. Names of hosts and users are left out."""

    cpu: str
    cores: int
    memory_bytes: int
    system: str
    load_average: tuple[float, float, float]
    versions: dict[str, str]
    commit: str
    dirty: bool
    command: str


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    """Return the output of git in the repository, or nothing where there is no commit or no git."""
    try:
        done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


async def _database_versions(servers: Servers) -> dict[str, str]:
    if servers.endpoints is None:
        return {}
    connection = await asyncpg.connect(servers.endpoints.admin_database_url)
    try:
        found = {"postgres": str(await connection.fetchval("SHOW server_version"))}
    finally:
        await connection.close()
    client: redis.asyncio.Redis = redis.asyncio.Redis.from_url(servers.endpoints.redis_url)
    try:
        information = await client.info("server")
    finally:
        await client.aclose()
    if "valkey_version" in information:
        return found | {"valkey": str(information["valkey_version"])}
    return found | {"redis": str(information["redis_version"])}


async def describe(servers: Servers) -> Machine:
    """Gather the facts; the databases are asked for their versions.

    faults  those of asyncpg and redis when a database does not answer
    """
    packages = ("aiohttp", "uvloop", "asyncpg", "redis", "msgspec")
    versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    commit, changes = await asyncio.gather(
        asyncio.to_thread(_git, "rev-parse", "HEAD"), asyncio.to_thread(_git, "status", "--porcelain")
    )
    databases = await _database_versions(servers)
    if "redis" in databases:
        versions["redis-py"] = versions.pop("redis")
    return Machine(
        cpu=_cpu(),
        cores=os.cpu_count() or 0,
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        load_average=os.getloadavg(),
        versions=versions | databases,
        commit=commit or "none",
        dirty=bool(changes),
        command=" ".join(["python -m bench", *sys.argv[1:]]),
    )
