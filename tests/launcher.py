"""How tests start programs that must not outlive them: the kernel ends each one with the thread that started it.

A run that is killed cleans nothing up, so every long-lived program goes through the launcher of `app.embedded`, which asks
the kernel for that. Start them in the main thread.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from app.embedded.account import Account
from app.embedded.child import LAUNCHER


def launched(
    argv: Sequence[str | Path],
    cwd: Path,
    *,
    death_signal: signal.Signals = signal.SIGKILL,
    account: Account | None = None,
    reach: Sequence[Path] = (),
) -> list[str]:
    """Return the command line that becomes `argv` in `cwd`, whose first word is an absolute path.

    death_signal  what the program gets when this thread or process is gone
    account       what it runs as, if not as we do
    reach         directories that it must be able to read by their full path
    """
    order = {
        "parent_pid": os.getpid(),
        "death_signal": int(death_signal),
        "account": [account.uid, account.gid] if account else None,
        "cwd": str(cwd),
        "reach": [str(path) for path in reach],
        "argv": [str(word) for word in argv],
    }
    return [sys.executable, "-I", "-S", str(LAUNCHER), json.dumps(order)]
