"""The commands of docs/deployment.md, so that tests do what it tells its readers to do."""

from __future__ import annotations

import re
from typing import Final

from tests.server import REPOSITORY

GUIDE: Final = (REPOSITORY / "docs" / "deployment.md").read_text()


def block(name: str) -> str:
    """Return the commands between the marks of this name."""
    found = re.findall(rf"^<!-- {name} -->\n```\w+\n(.*?)^```\n<!-- /{name} -->$", GUIDE, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"docs/deployment.md has {len(found)} blocks {name}"
    return str(found[0])
