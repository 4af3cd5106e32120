"""Work in a process of its own that stops before each of its steps until it is told to go on, so that it can be killed there."""

from __future__ import annotations

import io
import os
import signal
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvloop

from app.backup.directory import BackupDirectory
from app.backup.journal import Journal
from app.backup.restore import restore
from app.backup.upgrade import Order, migrate_up
from app.db import migrations
from app.db.topology import make_topology
from app.settings import SERVICES
from tests.audit.chain import SEAL

OLD_VERSION = 11  # what the database of an older release has
DEADLINE_S = 60.0
KEEP_DAYS = 30
_SERVER = get_context("forkserver")  # one process has the modules loaded, and each child is a fork of it
_SERVER.set_forkserver_preload(["tests.backup.migrator"])
Work = Callable[[Path, Journal, tuple[str, ...]], Coroutine[Any, Any, None]]


async def upgrade(backups: Path, journal: Journal, words: tuple[str, ...]) -> None:
    """Migrate; words: URL, sql directory."""
    url, sql = words
    migrations.resource_dir = lambda kind: Path(sql) if kind == "sql" else Path(kind)
    await migrate_up(url, BackupDirectory(backups), Order(SERVICES, KEEP_DAYS, seal=SEAL), journal)


async def put_back(backups: Path, journal: Journal, words: tuple[str, ...]) -> None:
    """Restore; words: URL, Redis' URL, id."""
    url, redis_url, backup_id = words
    directory, topology = BackupDirectory(backups), make_topology(redis_url)
    with directory.hold():
        backup = directory.read(backup_id)
        await restore(url, backup, directory, journal, topology=topology, seal=SEAL, accept_loss=True)
    await topology.close()


def _run(pipe: Connection, work: Work, backups: Path, words: tuple[str, ...]) -> None:
    def wait(step: str) -> None:
        pipe.send(step)
        pipe.recv()

    journal = Journal(backups, "test", stream=io.StringIO(), on_step=wait)
    uvloop.run(work(backups, journal, words))
    pipe.send("")


class Child:
    """A process that works step by step."""

    def __init__(self, pipe: Connection, pid: int) -> None:
        """`pipe` leads to it."""
        self._pipe = pipe
        self.pid = pid

    def next_step(self) -> str:
        """Return the step that it has come to, "" when it is done. EOFError when it failed."""
        assert self._pipe.poll(DEADLINE_S), "the process does not come to its next step"
        step: str = self._pipe.recv()
        return step

    def go_on(self) -> None:
        """Let it do that step."""
        self._pipe.send(None)

    def kill(self) -> None:
        """SIGKILL it."""
        os.kill(self.pid, signal.SIGKILL)


@contextmanager
def child(work: Work, backups: Path, *words: str) -> Iterator[Child]:
    """Start the work in a process of its own; at the end it is gone."""
    ours, theirs = _SERVER.Pipe()
    process = _SERVER.Process(target=_run, args=(theirs, work, backups, words), daemon=True)
    process.start()
    theirs.close()
    try:
        assert process.pid is not None
        yield Child(ours, process.pid)
    finally:
        process.kill()
        process.join()
        ours.close()


def kill_at_each_step(work: Work, backups: Path, *words: str, survived: Collection[str] = ()) -> Iterator[str]:
    """Run the work again and again, killed before its first step, then its second, and so on, until one run is done.

    A step that a run does several times is another one each time. Yields the step of each death. Nobody is killed before
    the steps `survived`.
    """
    deaths: set[tuple[str, int]] = set()
    while True:
        with child(work, backups, *words) as process:
            times: Counter[str] = Counter()
            while step := process.next_step():
                times[step] += 1
                if step not in survived and (step, times[step]) not in deaths:
                    deaths.add((step, times[step]))
                    process.kill()
                    break
                process.go_on()
        if not step:
            return
        yield step
