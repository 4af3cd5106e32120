"""Which account the servers run as."""

import os
import pwd
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.embedded.errors import DataDirectoryRefused

PREFERRED_ACCOUNTS: Final = ("postgres", "nobody")


@dataclass(frozen=True)
class Account:
    """An unprivileged account that root switches to."""

    uid: int
    gid: int


def server_account(owned: Iterable[Path]) -> Account | None:
    """The account for both servers: None means "as we are".

    owned    the servers' own directories, whether they exist or not. As root, the owner of an existing one
             decides, so that data once written by an ordinary user stays that user's.
    refusal  DataDirectoryRefused: a directory is another user's and we are not root; no account to switch to
    """
    uid = os.geteuid()
    for path in (path for path in owned if path.exists()):
        status = path.lstat()
        if uid == 0 and status.st_uid != 0:
            return Account(status.st_uid, status.st_gid)
        if uid not in (0, status.st_uid):
            raise DataDirectoryRefused(
                f"{path} belongs to uid {status.st_uid} and this process runs as uid {uid}. "
                "Start shieldx as the user that made the directory, or as root, or name another --data-dir."
            )
    if uid != 0:
        return None
    for name in PREFERRED_ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    raise DataDirectoryRefused(
        "PostgreSQL refuses to run as root, and neither of the users postgres and nobody exists. "
        "Run shieldx as an ordinary user, or set REDIS_URL and DATABASE_URL."
    )
