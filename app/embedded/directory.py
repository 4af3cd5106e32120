"""The data directory: who holds it, where its sockets are, and what it remembers.

What lies in it:

    lock              flock of the running server; the pid in it stays behind only after a crash
    root.key          the embedded root key
    checkpoint.key    seeds of the keys that sign checkpoints
    master.key        keys that wrap those of private data, the current one first
    endpoints.json    URLs of the running servers
    postgres/         PostgreSQL's data          redis/        the append-only file
    redis.json        kind and version of the server that wrote redis/
    log/              postgres.log, redis.log    run/          the two sockets, if the path is short enough
    backups/          backups, unless a setting names another directory

All of it is private to the user that started the servers and to the account that they run as.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from app.embedded.account import Account
from app.embedded.errors import DataDirectoryBusy, DataDirectoryRefused, ServersNotRunning

SOCKET_PATH_BYTES_MAX: Final = 103  # sun_path without its final zero: 103 on macOS, 107 on Linux
POSTGRES_PORT: Final = 5432  # only a part of the socket's name; nothing listens on TCP
POSTGRES_SOCKET: Final = f".s.PGSQL.{POSTGRES_PORT}"
REDIS_SOCKET: Final = "redis.sock"
LOCK_ATTEMPTS_MAX: Final = 5  # `shieldx urls` holds the lock for microseconds to see whether a server does
LOCK_RETRY_S: Final = 0.02
ROOT_KEY_PREFIX: Final = "shx_root_"
ROOT_KEY_BYTES: Final = 32  # 256 random bits, 43 characters in base64
CHECKPOINT_SEED_BYTES: Final = 32  # of Ed25519
ROOT_KEY_PATTERN: Final = re.compile(ROOT_KEY_PREFIX + r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True)
class Endpoints:
    """URLs of the running servers, all over unix sockets.

    database_url        logs in as the restricted role shieldx_app
    admin_database_url  logs in as the superuser postgres
    """

    redis_url: str
    database_url: str
    admin_database_url: str


@dataclass(frozen=True)
class DataDirectory:
    """Paths below one data directory."""

    root: Path

    @classmethod
    def at(cls, data_dir: Path) -> "DataDirectory":
        """The directory at `data_dir`, made if there is none. Links are followed once, here.

        What lies in it is private by its own mode. Made by root, it lets others pass through, so that the
        servers' account reaches its own directories without a capability.
        """
        with _explained(data_dir):
            data_dir.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                data_dir.mkdir(mode=0o700)
                if os.geteuid() == 0:
                    data_dir.chmod(0o711)
            return cls(data_dir.resolve(strict=True))

    @property
    def lock(self) -> Path:
        """Held by the running server."""
        return self.root / "lock"

    @property
    def endpoints(self) -> Path:
        """URLs of the running servers."""
        return self.root / "endpoints.json"

    @property
    def postgres(self) -> Path:
        """PostgreSQL's data."""
        return self.root / "postgres"

    @property
    def redis(self) -> Path:
        """Redis's data."""
        return self.root / "redis"

    @property
    def redis_mark(self) -> Path:
        """Kind and version that wrote `redis`."""
        return self.root / "redis.json"

    @property
    def log(self) -> Path:
        """Logs of both servers."""
        return self.root / "log"

    @property
    def half_made(self) -> list[Path]:
        """Database directories whose making was interrupted."""
        return sorted(self.root.glob("postgres.init-*"))


class Hold:
    """The exclusive right to serve from a data directory; the kernel ends it with the process."""

    def __init__(self, descriptor: int, *, crashed: bool) -> None:
        """Wrap the locked `descriptor`; `crashed` says that the holder before us did not stop cleanly."""
        self._descriptor = descriptor
        self.crashed = crashed

    def release(self, *, clean: bool) -> None:
        """Give the directory up; `clean` records that nothing was left running."""
        if clean:
            os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


async def hold(directory: DataDirectory) -> Hold:
    """Take the exclusive right to `directory`, or raise DataDirectoryBusy naming who has it."""
    for attempt in range(LOCK_ATTEMPTS_MAX):
        if attempt:
            await asyncio.sleep(LOCK_RETRY_S)
        held = _try_hold(directory)
        if held is not None:
            return held
    pid = directory.lock.read_text().strip() or "unknown"
    raise DataDirectoryBusy(
        f"the data directory {directory.root} is in use by the process with pid {pid}. "
        "Stop that process, or name another --data-dir."
    )


def _try_hold(directory: DataDirectory) -> Hold | None:
    with _explained(directory.root):
        # Python opens with O_CLOEXEC, so no server inherits the lock.
        descriptor = os.open(directory.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    crashed = os.fstat(descriptor).st_size > 0
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    return Hold(descriptor, crashed=crashed)


def read_endpoints(data_dir: Path) -> Endpoints:
    """URLs of the servers that run on `data_dir` now.

    refusal  ServersNotRunning: no server holds the directory, or it is still starting
    """
    directory = DataDirectory(data_dir.resolve())
    missing = ServersNotRunning(f"no server runs on the data directory {directory.root}. Start one: shieldx serve")
    try:
        with directory.lock.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        raise missing from None
    except PermissionError:
        raise DataDirectoryRefused(
            f"uid {os.geteuid()} cannot read {directory.lock}. Ask as the user that started the server."
        ) from None
    except BlockingIOError:
        try:
            return Endpoints(**json.loads(directory.endpoints.read_text()))
        except FileNotFoundError:
            raise ServersNotRunning(
                f"the server on the data directory {directory.root} is not ready yet. Try again in a second."
            ) from None
    raise missing


def make_endpoints(sockets: Path) -> Endpoints:
    """URLs for the two sockets in `sockets`."""
    # The port is part of the socket's name; without it clients would take it from PGPORT.
    tail = f"@/shieldx?host={quote(str(sockets))}&port={POSTGRES_PORT}"
    return Endpoints(
        redis_url=f"unix://{quote(str(sockets / REDIS_SOCKET))}?db=0",
        database_url=f"postgresql://shieldx_app{tail}",
        admin_database_url=f"postgresql://postgres{tail}",
    )


def write_endpoints(directory: DataDirectory, endpoints: Endpoints) -> None:
    """Publish `endpoints` for `read_endpoints`."""
    write_whole(directory.endpoints, json.dumps(asdict(endpoints)) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a small private file so that readers see the old text or the new one, never a part."""
    beside = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def existing_root_key(data_dir: Path) -> str:
    """The root key of this data directory for a command that only reads it: where a server would make one, none is made.

    refusal  DataDirectoryRefused: there is none, and whatever `root_key` refuses
    """
    with _explained(data_dir):
        found = (data_dir / "root.key").exists()
    if not found:
        raise DataDirectoryRefused(
            f"there is no root key in {data_dir.absolute()}: the first start of a server there makes it, unless it has "
            "one from SHIELDX_ROOT_KEY. Name the --data-dir of the server."
        )
    return root_key(data_dir)


def root_key(data_dir: Path) -> str:
    """The root key of this data directory, made at the first call; file root.key, mode 0600.

    returns  "shx_root_" and 43 URL-safe characters
    refusal  DataDirectoryRefused: the file is not ours to read, or holds something else
    """
    directory = DataDirectory.at(data_dir)
    path = directory.root / "root.key"
    with _explained(directory.root):
        if not path.exists():
            make_secret(path, f"{ROOT_KEY_PREFIX}{secrets.token_urlsafe(ROOT_KEY_BYTES)}")
        token = path.read_text().strip()
    if ROOT_KEY_PATTERN.fullmatch(token) is None:
        raise DataDirectoryRefused(
            f"{path} does not hold a root key. Put the key back, or move the file away to get a new key."
        )
    return token


def secret_file(data_dir: Path, name: str) -> Path:
    """The path of a secret file in this data directory, which is made if it is missing.

    refusal  DataDirectoryRefused: the directory is not ours to use
    """
    return DataDirectory.at(data_dir).root / name


def checkpoint_keys(data_dir: Path) -> str:
    """The text of the data directory's file of seeds that sign checkpoints, made with one seed at the first call.

    returns  the file checkpoint.key, mode 0600: 64 hex digits a line, the newest seed first
    refusal  DataDirectoryRefused: the file is not ours to read
    """
    directory = DataDirectory.at(data_dir)
    path = directory.root / "checkpoint.key"
    with _explained(directory.root):
        if not path.exists():
            make_secret(path, secrets.token_hex(CHECKPOINT_SEED_BYTES))
        return path.read_text()


def make_secret(path: Path, text: str) -> None:
    """Make a private file of one line, mode 0600, unless there is one: it appears whole or not at all, and stays."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{text}\n")
            file.flush()
            os.fsync(file.fileno())
        # A link never replaces a file: of several processes one wins, and all read the winner's key.
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        sync_directory(path.parent)
    finally:
        draft.unlink()


def make_server_directory(path: Path, account: Account | None) -> None:
    """Make `path`, if missing, as a 0700 directory of the servers' account."""
    path.mkdir(mode=0o700, exist_ok=True)
    if account is None:
        return
    try:
        os.chown(path, account.uid, account.gid, follow_symlinks=False)
    except OSError as error:
        raise DataDirectoryRefused(
            f"root may not give {path} to uid {account.uid} here ({error.strerror}), and the database server "
            "refuses to run as root. Permit CAP_CHOWN, CAP_SETUID and CAP_SETGID, or run shieldx as an "
            "ordinary user, or set REDIS_URL and DATABASE_URL."
        ) from None


def make_sockets_directory(directory: DataDirectory, account: Account | None) -> Path:
    """An empty directory for the sockets that only the servers' account (and root) may enter.

    Below the data directory if the sockets' paths fit there, else in /tmp under a name made from
    a hash of the data directory's path.
    """
    run = directory.root / "run"
    too_long = len(os.fsencode(run / POSTGRES_SOCKET)) > SOCKET_PATH_BYTES_MAX
    # Clients of PostgreSQL take a comma in `host` for the end of the first of several hosts.
    if too_long or "," in str(run):
        digest = hashlib.sha256(os.fsencode(directory.root)).hexdigest()[:12]
        run = Path("/tmp") / f"shieldx-{digest}"  # noqa: S108 - see _is_private
        if os.path.lexists(run) and not _is_private(run, account):
            # Somebody else took the name; a random one cannot be foreseen.
            run = run.with_name(f"{run.name}-{secrets.token_hex(4)}")
    make_server_directory(run, account)
    _empty(run)
    return run


def remove_sockets_directory(sockets: Path) -> None:
    """Remove the sockets and their directory; what is gone already is no fault."""
    with contextlib.suppress(FileNotFoundError):
        _empty(sockets)
        sockets.rmdir()


def _empty(path: Path) -> None:
    """Remove the files in a directory, never in one that a link put in its place points to."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        for name in os.listdir(descriptor):  # noqa: PTH208 - a Path cannot name a descriptor
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=descriptor)
    finally:
        os.close(descriptor)


def _is_private(path: Path, account: Account | None) -> bool:
    """Whether `path` is a real directory that only we or the servers' account can enter."""
    status = path.lstat()
    owners = {os.geteuid()} | ({account.uid} if account else set())
    return stat.S_ISDIR(status.st_mode) and status.st_uid in owners and stat.S_IMODE(status.st_mode) == 0o700


@contextlib.contextmanager
def _explained(data_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataDirectoryRefused(
            f"uid {os.geteuid()} cannot use the data directory {data_dir}: {error}. "
            "Start shieldx as the user that made it, or name another --data-dir."
        ) from None
