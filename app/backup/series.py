"""The metrics of backups, read from the metadata in the backup directory: whoever makes them need not be a server."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from app.backup.directory import Backup, BackupDirectory

READ_INTERVAL_S: Final = 30.0  # backups are hours apart; reading a month of metadata takes a few milliseconds


class BackupSeries(Collector):
    """shieldx_backup_age_seconds, shieldx_backup_size_bytes and shieldx_backup_last_success.

    Without any backup there is no age and no size, and last_success is 0.
    """

    def __init__(self, directory: BackupDirectory, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives Unix seconds."""
        self._directory = directory
        self._clock = clock
        self._read_s = -READ_INTERVAL_S
        self._newest: Backup | None = None
        self._failed = False

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield what is known of the newest backup, read again at most every READ_INTERVAL_S."""
        now_s = self._clock()
        if now_s - self._read_s >= READ_INTERVAL_S:
            self._read_s = now_s
            known = self._directory.list()
            self._newest = known[-1] if known else None
            self._failed = self._directory.last_failure() is not None
        success = self._newest is not None and not self._failed
        yield GaugeMetricFamily(
            "shieldx_backup_last_success", "1 when the last attempt made a good backup, 0 when it failed or there is none",
            value=float(success),
        )  # fmt: skip
        if self._newest is not None:
            finished_s = datetime.fromisoformat(self._newest.finished_at).timestamp()
            yield GaugeMetricFamily(
                "shieldx_backup_age_seconds", "Since the newest good backup was finished", value=max(0.0, now_s - finished_s)
            )
            yield GaugeMetricFamily(
                "shieldx_backup_size_bytes", "Size of the newest good backup", value=float(self._newest.size_bytes)
            )
