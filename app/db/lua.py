"""Lua scripts: read once, one level of includes expanded, named by the SHA-1 that Redis knows them by."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from typing import Final, NamedTuple

from app.db.resources import resource_dir

_INCLUDE: Final = re.compile(r"^-- include: (\S+)$", re.MULTILINE)


class Script(NamedTuple):
    """A script's name, full text and SHA-1 in hex."""

    name: str
    text: str
    sha: str


@cache
def load_script(name: str) -> Script:
    """Return lua/<name>.lua with each `-- include: lib/x.lua` line followed by that file's text."""
    root = resource_dir("lua")
    text = (root / f"{name}.lua").read_text()
    for include in _INCLUDE.findall(text):
        text = text.replace(f"-- include: {include}\n", (root / include).read_text(), 1)
    return Script(name, text, hashlib.sha1(text.encode()).hexdigest())  # noqa: S324 - the name Redis gives it
