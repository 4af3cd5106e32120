"""Where the Lua and SQL files lie: at the root of a checkout, inside the package when installed from a wheel."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_PACKAGE: Final = Path(__file__).resolve().parent.parent


def resource_dir(kind: str) -> Path:
    """Return the directory of `kind` ("lua" or "sql"). Raises FileNotFoundError when the install lacks it."""
    for candidate in (_PACKAGE / f"_{kind}", _PACKAGE.parent / kind):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"the {kind}/ files are not installed beside {_PACKAGE}")
